"""What TensorRT's inspector tells of an engine's layers."""

__all__ = ["layer_entries"]

import json
from typing import Any

from graphopt.engine.flavour import Flavour


def layer_entries(flavour: Flavour, engine: Any, context: Any = None) -> list[dict[str, Any]]:
    """Return one entry per layer, with at least ``Name``; below detailed verbosity, with nothing else.

    Args:
        flavour: whose engine it is.
        engine: an ICudaEngine.
        context: an IExecutionContext of it, whose profile and shapes then count.
    """
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(flavour.trt.LayerInformationFormat.JSON)
    # TensorRT 8 writes the line breaks of a plugin's attributes as they are, which JSON forbids.
    entries = json.loads(text, strict=False).get("Layers", [])
    return [{"Name": entry} if isinstance(entry, str) else entry for entry in entries]
