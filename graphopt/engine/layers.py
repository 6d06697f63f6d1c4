"""What TensorRT's inspector tells of an engine's layers, and its profiler of their times."""

__all__ = ["LayerTime", "layer_entries", "layer_times"]

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphopt.engine.flavour import Flavour


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer of the engine per run, in microseconds; ``op`` is its plugin or TensorRT's name of its kind."""

    name: str
    op: str
    us: float


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


def layer_times(flavour: Flavour, engine: Any, context: Any, execute: Callable[[], None], runs: int) -> list[LayerTime]:
    """Return the mean time of every layer over ``runs`` runs, after one to warm up.

    Args:
        flavour: whose engine it is.
        engine: an ICudaEngine.
        context: an IExecutionContext of it, ready to run; the profiler stays attached to it.
        execute: runs the context and waits for its end.
        runs: at least 1.
    """
    totals: dict[str, float] = {}
    base = flavour.trt.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    profiler = Profiler()
    execute()
    context.profiler = profiler
    for _ in range(runs):
        execute()
    entries = layer_entries(flavour, engine, context)
    ops = {e.get("Name", ""): e.get("PluginType") or e.get("LayerType") or "other" for e in entries}
    return [LayerTime(name, ops.get(name, "other"), 1e3 * ms / runs) for name, ms in totals.items()]
