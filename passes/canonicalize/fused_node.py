"""Nodes that do at once what canonical ops do one by one: their inputs by name, and what a rule does not know of them.

Such operators gain inputs and attributes from version to version. One that a rule has never heard of may mean anything,
so that a node which uses it stays as it is.
"""

__all__ = ["Attributes", "inputs_of", "unknown"]

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

#: Attributes that a rule understands, with the values at which there is nothing to do; None: it reads them, or may not.
Attributes = Mapping[str, tuple[Any, ...] | None]


def inputs_of(node: gs.Node, names: Sequence[str]) -> dict[str, gs.Tensor]:
    """Return the inputs of ``node`` that are not left out, by ``names`` in order; those beyond them are `unknown`."""
    return {name: t for name, t in zip(names, node.inputs, strict=False) if not t.is_empty()}


def unknown(node: gs.Node, names: Sequence[str], attributes: Attributes) -> str | None:
    """Return what ``node`` says beyond what a rule understands, as a clause; None if there is nothing.

    Args:
        node: of the rule's operator.
        names: of the inputs that the rule understands.
        attributes: that it understands.
    """
    for number, tensor in enumerate(node.inputs[len(names) :], len(names)):
        if not tensor.is_empty():
            return f"'{tensor.name}' is given as input {number}, which is not known"
    for name, value in node.attrs.items():
        if name not in attributes:
            return f"its attribute {name} is not known"
        neutral = attributes[name]
        if neutral is not None and value not in neutral:
            return f"{name} is {value}"
    return None
