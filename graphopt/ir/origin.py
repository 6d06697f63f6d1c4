"""What made a model: the name of the recipe that its weights went through, kept in the model's metadata.

graphopt.scheme = mixq-w8a8
"""

__all__ = ["KEY", "read", "write"]

from collections.abc import Iterable

import onnx

from graphopt.ir.model import Model

KEY = "graphopt.scheme"


def read(properties: Iterable[onnx.StringStringEntryProto]) -> str | None:
    """Return the name that a model's ``metadata_props`` hold; None for a model whose weights are untouched."""
    return next((p.value for p in properties if p.key == KEY), None)


def write(model: Model, scheme: str) -> None:
    """Put ``scheme`` into the metadata of ``model``, in place of any earlier one."""
    kept = [p for p in model.shell.metadata_props if p.key != KEY]
    del model.shell.metadata_props[:]
    model.shell.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=KEY, value=scheme)])
