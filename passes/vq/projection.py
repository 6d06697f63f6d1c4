"""The linear that makes the heads of queries or keys, and how their channels are changed in its weight.

    Linear(Bias) -> Reshape (B, S, H, D) [-> Slice of heads] [-> RMSNorm or LayerNorm over D]

A norm over D does not care for the order of its channels, and drops their scales: those go into its gamma (and beta).
"""

__all__ = ["Projection", "find_projection"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.canonical import LINEAR_OPS, LinearView
from graphopt.core.op import DOMAIN
from graphopt.ir import query, weights
from graphopt.ir.model import Model

_NORMS = ("RMSNorm", "LayerNorm")


@dataclass(frozen=True)
class Projection:
    """Rows of a linear that are heads of D channels each.

    Attributes:
        linear: whose rows they are.
        first: the first of them.
        heads: H; head h is the rows first + h·D .. first + h·D + D - 1.
        norm: the norm over D that follows, with the same gamma for every head; None without one.
    """

    linear: LinearView
    first: int
    heads: int
    norm: gs.Node | None

    def change(self, model: Model, order: np.ndarray, scale: np.ndarray) -> None:
        """Give channel c of head h what channel order[c] had, times scale[h, c].

        Args:
            model: of the linear.
            order: (D,) permutation.
            scale: (H, D); where there is a norm, the same for all heads.
        """
        rows = self.first + np.arange(self.heads)[:, None] * len(order)
        source, target = (rows + order).reshape(-1), (rows + np.arange(len(order))).reshape(-1)
        factor = np.ones(scale.size) if self.norm is not None else scale.reshape(-1)
        node = self.linear.node
        row_axis = 0 if self.linear.transposed else 1
        node.inputs[1] = _changed(model, node.inputs[1], row_axis, source, target, factor)
        if self.linear.bias is not None:
            node.inputs[2] = _changed(model, node.inputs[2], 0, source, target, factor)
        if self.norm is not None:
            for i in range(1, len(self.norm.inputs)):
                given = self.norm.inputs[i]
                self.norm.inputs[i] = _changed(model, given, 0, order, np.arange(len(order)), scale[0])


def find_projection(graph: gs.Graph, x: gs.Tensor, size: int, dead: set[int]) -> Projection | str:
    """Return what makes the heads ``x`` (B, S, H, D) and nothing else, or why there is no such linear, as a clause.

    Args:
        graph: the main graph.
        x: queries or keys before the rotary.
        size: D.
        dead: ids of nodes that are about to go, whose reading does not count.
    """
    norm, split = _behind(x, *_NORMS, domain=DOMAIN)
    cut, whole = _behind(split, "Slice")
    reshape, rows = _behind(whole, "Reshape")
    node = query.producer(rows)
    if reshape is None or not query.is_op(node, *LINEAR_OPS, domain=DOMAIN):
        return f"'{x.name}' is not made by a linear"
    for tensor in (x, split, whole, rows):
        if query.is_output(graph, tensor) or any(id(reader) not in dead for reader in query.consumers(tensor)):
            return f"'{tensor.name}' is read by others too"
    linear = LinearView(node)
    constants = [*node.inputs[1:], *(norm.inputs[1:] if norm is not None else ())]
    if not all(isinstance(t, gs.Constant) for t in constants) or len(linear.weight.shape) != 2:
        return f"the weight of '{linear.name}' is not a constant"
    every = linear.shape[0] // size
    start, stop = (0, every) if cut is None else _bounds(cut)
    stop = min(stop, every)
    known = x.shape[2:] if x.shape is not None and len(x.shape) == 4 else []
    if list(known) != [stop - start, size] or linear.shape[0] % size:
        return f"the heads of '{x.name}' are not known to be rows of '{linear.name}'"
    return Projection(linear, start * size, stop - start, norm)


def _behind(tensor: gs.Tensor, *ops: str, domain: str = "") -> tuple[gs.Node | None, gs.Tensor]:
    """Return the node that makes ``tensor`` and what it reads, if it is one of ``ops``; else None and ``tensor``."""
    node = query.producer(tensor)
    return (node, node.inputs[0]) if query.is_op(node, *ops, domain=domain) else (None, tensor)


def _bounds(cut: gs.Node) -> tuple[int, int]:
    """Return the heads that a Slice takes out of (B, S, H, D); none where it slices otherwise."""
    given = [query.constant_array(t) for t in cut.inputs[1:5]]
    numbers = [int(a.reshape(-1)[0]) for a in given if a is not None and a.size == 1]
    start, stop, axis, step = (*numbers, 1) if len(numbers) == 3 else (numbers if len(numbers) == 4 else (0, 0, 0, 0))
    return (start, stop) if axis == 2 and step == 1 and start >= 0 else (0, 0)


def _changed(
    model: Model, constant: Any, axis: int, source: np.ndarray, target: np.ndarray, factor: np.ndarray
) -> gs.Constant:
    """Return ``constant`` with slices ``target`` along ``axis`` replaced by its slices ``source`` times ``factor``."""
    stored = weights.read(constant)
    values = np.array(np.moveaxis(stored, axis, 0))
    shape = -1, *[1] * (values.ndim - 1)
    values[target] = (values[source].astype(np.float32) * factor.astype(np.float32).reshape(shape)).astype(values.dtype)
    name = model.unique_name(f"{constant.name}_arranged")
    return model.store.put(name, np.ascontiguousarray(np.moveaxis(values, 0, axis)))
