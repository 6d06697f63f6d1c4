"""Dimensions that shape inference had to invent, and that the canonical form shows to be others: unk__6 is "sequence".

Inference cannot see through the addition of a mask whose size it does not know, so every tensor after the first
attention gets invented symbols. Three facts undo that: a canonical op gives the shape of its first input (Attention
and Linear with a last dimension of their own), and an elementwise operator whose inputs have one shape gives that
shape. Symbols are replaced wherever they stand.
"""

__all__ = ["unify_symbols"]

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir import query
from graphopt.ir.model import Model

#: How onnx's shape inference names dimensions that it can only tell to be unknown.
_INVENTED = "unk__"
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")


def unify_symbols(model: Model, report: Report) -> None:
    """Visit the main graph; subgraphs and functions keep their symbols."""
    same: dict[str, Any] = {}

    def resolved(shape: Sequence[Any]) -> list[Any]:
        return [_follow(same, d) for d in shape]

    for node in model.graph.nodes:
        if not node.outputs or node.outputs[0].shape is None:
            continue
        implied = _implied(node, resolved)
        given = resolved(node.outputs[0].shape)
        if implied is None or len(implied) != len(given):
            continue
        for invented, dimension in zip(given, implied, strict=True):
            if str(invented).startswith(_INVENTED) and dimension not in (None, invented):
                same[invented] = dimension
    if not same:
        return
    for tensor in model.graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = resolved(tensor.shape)


def _follow(same: dict[str, Any], dimension: Any) -> Any:
    while isinstance(dimension, str) and dimension in same:
        dimension = same[dimension]
    return dimension


def _implied(node: gs.Node, resolved: Any) -> list[Any] | None:
    """Return the shape that ``node`` must give, from those of its inputs; None if none of the facts says."""
    shapes = [t.shape for t in node.inputs]
    if node.domain == DOMAIN and "plugin_namespace" not in node.attrs and shapes[0] is not None:
        lead, last = resolved(shapes[0]), resolved(node.outputs[0].shape)[-1]
        return [*lead[:-1], last] if node.op in ("Attention", *LINEAR_OPS) else lead
    if query.is_op(node, *_ELEMENTWISE) and None not in shapes:
        a, b = map(resolved, shapes)
        if a == b and None not in a:
            return list(a)
    return None
