"""Attention over past ++ new keys, as exporters write a decoder's cache:

    k = Concat(past_k, Rotary(x_k, cos, sin)),  v = Concat(past_v, x_v),  Attention(Rotary(x_q, cos, sin), k, v, mask)

past_k and past_v are inputs of the graph; k and v are its outputs. The rotary may be missing. Visits the main graph.
"""

__all__ = ["Layer", "find"]

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.core.rule import Refusal
from graphopt.ir import query
from graphopt.ir.model import Model


@dataclass(frozen=True)
class Layer:
    """One attention layer with a cache that grows.

    Attributes:
        node: the canonical Attention.
        q, k, v: (B, H, S, D) of the new tokens, before the rotary.
        tables: cos and sin, broadcastable to q and k; None without a rotary.
        past: inputs of the graph (B, Hkv, past, D), for keys and for values.
        present: outputs of the graph (B, Hkv, past + S, D).
        kv_heads: Hkv.
        head_size: D.
    """

    node: gs.Node
    q: gs.Tensor
    k: gs.Tensor
    v: gs.Tensor
    tables: tuple[gs.Tensor, gs.Tensor] | None
    past: tuple[gs.Variable, gs.Variable]
    present: tuple[gs.Variable, gs.Variable]
    kv_heads: int
    head_size: int

    @property
    def mask(self) -> gs.Tensor:
        """Additive mask, broadcastable to (B, Hq, S, past + S)."""
        return self.node.inputs[3]

    @property
    def scale(self) -> float:
        """Factor on q · k."""
        return float(self.node.attrs["scale"])


def find(model: Model) -> tuple[list[Layer], list[Refusal]]:
    """Return the layers with a cache, in graph order, and why others that concatenate keys are not among them."""
    layers, refusals = [], []
    for node in model.graph.nodes:
        if query.is_op(node, "Attention", domain=DOMAIN) and any(query.is_op(p, "Concat") for p in _makers(node)):
            found = _match(model.graph, node)
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                layers.append(found)
    return layers, refusals


def _makers(node: gs.Node) -> list[gs.Node | None]:
    return [query.producer(t) for t in node.inputs[1:3]]


def _match(graph: gs.Graph, node: gs.Node) -> Layer | Refusal:
    halves = []
    for present, maker in zip(node.inputs[1:3], _makers(node), strict=True):
        half = _appended(graph, node, present, maker)
        if isinstance(half, str):
            return Refusal(half, node.name)
        halves.append(half)
    (past_k, new_k), (past_v, new_v) = halves
    kv_heads, size = (_size(axis, *halves[0]) for axis in (1, 3))
    if kv_heads is None or size is None or _size(3, *halves[1]) != size:
        return Refusal(f"'{new_k.name}' and '{new_v.name}' do not have known heads of one size", node.name)
    q, turn_q = _unturned(node.inputs[0])
    k, turn_k = _unturned(new_k)
    if (turn_q is None) != (turn_k is None) or any(a is not b for a, b in zip(turn_q or (), turn_k or (), strict=True)):
        return Refusal("queries and keys are not rotated by the same tables", node.name)
    present = (node.inputs[1], node.inputs[2])
    return Layer(node, q, k, new_v, turn_q, (past_k, past_v), present, kv_heads, size)


def _appended(
    graph: gs.Graph, node: gs.Node, present: gs.Tensor, concat: gs.Node | None
) -> tuple[gs.Variable, gs.Tensor] | str:
    """Return (past, new) where ``present`` is nothing but their concatenation along the tokens; else why not."""
    if not query.is_op(concat, "Concat") or len(concat.inputs) != 2 or concat.attrs.get("axis") not in (2, -2):
        return f"'{present.name}' is not past and new tokens concatenated"
    past, new = concat.inputs
    if not any(past is t for t in graph.inputs) or past.shape is None or len(past.shape) != 4:
        return f"the past '{past.name}' is not an input of the model of rank 4"
    if not query.is_output(graph, present):
        return f"'{present.name}' is not an output of the model"
    for tensor, reader in ((past, concat), (present, node)):
        others = [n for n in query.consumers(tensor) if n is not reader and n.op != "Shape"]
        if others:
            return f"'{tensor.name}' is read by node '{others[0].name}' ({others[0].op}) too"
    return past, new


def _size(axis: int, *tensors: gs.Tensor) -> int | None:
    """Return dimension ``axis`` of (B, Hkv, L, D) tensors, from the first that knows it."""
    known = [t.shape[axis] for t in tensors if t.shape is not None and len(t.shape) == 4]
    return next((int(size) for size in known if isinstance(size, (int, np.integer))), None)


def _unturned(x: gs.Tensor) -> tuple[gs.Tensor, tuple[gs.Tensor, gs.Tensor] | None]:
    """Return what a Rotary rotates and its tables; ``x`` itself and None if it is not rotated."""
    node = query.producer(x)
    if not query.is_op(node, "Rotary", domain=DOMAIN):
        return x, None
    x, cos, sin = node.inputs
    return x, (cos, sin)
