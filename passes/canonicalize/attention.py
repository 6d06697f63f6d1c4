"""Scaled dot-product attention written out -> Attention(q, k, v, mask; scale).

    MatMul(Softmax(scale · MatMul(q, kᵀ) + mask), v)

Understood on the way: the scale as a factor or divisor of the scores, of q, of k, or of both (torch puts √scale on
each); kᵀ as a Transpose, with or without the reshapes to rank 3 around it; a mask or none; Casts around the softmax;
the guard Where(IsNaN(p), 0, p) for rows that are masked everywhere; key and value heads repeated for grouped queries,
which the canonical op does by itself. Visits the main graph and its subgraphs.
"""

__all__ = ["RULES", "no_mask", "unrepeated"]

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, element_type, place
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name
from graphopt.passes.canonicalize.symbolic import Entry, dimension, integers, product

_HEADS_LAST = [0, 1, 3, 2]


@dataclass(frozen=True)
class _Attention:
    node: gs.Node
    q: gs.Tensor
    k: gs.Tensor
    k_permuted: list[int] | None
    v: gs.Tensor
    mask: gs.Tensor | None
    scale: float


def _made_by(tensor: gs.Tensor, op: str) -> gs.Node | None:
    node = query.producer(tensor)
    return node if query.is_op(node, op) else None


def uncast_all(tensor: gs.Tensor) -> gs.Tensor:
    """Return what ``tensor`` was before any Casts."""
    while (node := _made_by(tensor, "Cast")) is not None:
        tensor = node.inputs[0]
    return tensor


def _probabilities(tensor: gs.Tensor) -> gs.Node | None:
    """Return the Softmax behind ``tensor``, through Casts and the guard against rows without a key."""
    tensor = uncast_all(tensor)
    guard = _made_by(tensor, "Where")
    if guard is not None:
        test = _made_by(guard.inputs[0], "IsNaN")
        if test is None or test.inputs[0] is not guard.inputs[2] or query.scalar(guard.inputs[1]) != 0.0:
            return None
        tensor = uncast_all(guard.inputs[2])
    return _made_by(tensor, "Softmax")


def _unscaled(tensor: gs.Tensor) -> tuple[gs.Tensor, float]:
    """Return ``(t, factor)`` with tensor = factor · t."""
    node = query.producer(tensor)
    if node is not None and query.is_op(node, "Mul"):
        for x, c in (node.inputs, node.inputs[::-1]):
            if (value := query.scalar(c)) is not None:
                return x, value
    if node is not None and query.is_op(node, "Div") and (value := query.scalar(node.inputs[1])):
        return node.inputs[0], 1.0 / value
    return tensor, 1.0


def _split_mask(scores: gs.Tensor) -> tuple[gs.Node | None, float, gs.Tensor | None]:
    """Return ``(MatMul q kᵀ, factor, mask)`` of the tensor that goes into the softmax."""
    scores = uncast_all(scores)
    candidates: list[tuple[gs.Tensor, gs.Tensor | None]] = [(scores, None)]
    add = _made_by(scores, "Add")
    if add is not None:
        a, b = add.inputs
        candidates = [(a, b), (b, a)]
    for scaled, mask in candidates:
        inner, factor = _unscaled(uncast_all(scaled))
        matmul = _made_by(uncast_all(inner), "MatMul")
        if matmul is not None and not any(query.is_constant(t) for t in matmul.inputs):
            return matmul, factor, mask
    return None, 1.0, None


def _keys(tensor: gs.Tensor) -> tuple[gs.Tensor, list[int] | None] | None:
    """Return ``(k, perm)`` if ``tensor`` is k with its last two axes swapped; perm makes k (B, H, L, D) first."""
    node = query.producer(tensor)
    if node is not None and query.is_op(node, "Transpose"):
        perm = list(node.attrs.get("perm", []))
        if perm == _HEADS_LAST:
            return node.inputs[0], None
        return (node.inputs[0], [perm[i] for i in _HEADS_LAST]) if len(perm) == 4 else None
    # torch's decomposition: (B, H, L, D) -> (B·H, L, D) -> transposed -> (B, H, D, L).
    outer = _made_by(tensor, "Reshape")
    middle = None if outer is None else _made_by(outer.inputs[0], "Transpose")
    inner = None if middle is None else _made_by(middle.inputs[0], "Reshape")
    if outer is None or middle is None or inner is None or list(middle.attrs.get("perm", [])) != [0, 2, 1]:
        return None
    k = inner.inputs[0]
    b, h, length, d = (dimension(k, i) for i in range(4))
    if integers(inner.inputs[1]) != [-1, length, d] or integers(outer.inputs[1]) != [b, h, d, length]:
        return None
    return k, None


def unrepeated(tensor: gs.Tensor) -> gs.Tensor:
    """Return k (B, Hkv, L, D) if ``tensor`` is Reshape(Expand(Unsqueeze(k, 2))), each head repeated; else itself."""
    reshape = _made_by(tensor, "Reshape")
    expand = None if reshape is None else _made_by(reshape.inputs[0], "Expand")
    unsqueeze = None if expand is None else _made_by(expand.inputs[0], "Unsqueeze")
    if reshape is None or expand is None or unsqueeze is None or integers(unsqueeze.inputs[1]) != [2]:
        return tensor
    k = unsqueeze.inputs[0]
    target, joined = integers(expand.inputs[1]), integers(reshape.inputs[1])
    if k.shape is None or len(k.shape) != 4 or target is None or joined is None or len(target) != 5 or len(joined) != 4:
        return tensor
    batch, heads, length, d = (dimension(k, i) for i in range(4))
    group = target[2]
    if not isinstance(group, int):
        return tensor
    if joined[0] == 0 and not reshape.attrs.get("allowzero", 0):
        joined = [batch, *joined[1:]]  # 0 keeps a dimension
    kept = all(
        t is not None and t in (1, own)
        for t, own in zip([*target[:2], *target[3:]], (batch, heads, length, d), strict=True)
    )
    expected: list[Entry] = [batch, product(heads, group), length, d]
    joins = (
        all(j is not None and j in (own, -1) for j, own in zip(joined, expected, strict=True)) and joined.count(-1) <= 1
    )
    return k if kept and joins else tensor


def no_mask(emitter: Emitter, like: gs.Tensor) -> gs.Tensor:
    """Return the additive mask of an attention without one: a zero of the type of ``like``."""
    return emitter.const(np.zeros((1, 1, 1, 1)), element_type(like))


class AttentionRule(Rule):
    """Softmax between two matrix products -> Attention."""

    name = "attention"
    anchors = ("MatMul",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "MatMul"):
            return None
        softmax = _probabilities(node.inputs[0])
        if softmax is None:
            return None
        matmul, factor, mask = _split_mask(softmax.inputs[0])
        if matmul is None:
            return Refusal("the softmax is not of a scaled product plus a mask", softmax.name)
        rank = None if node.outputs[0].shape is None else len(node.outputs[0].shape)
        if rank != 4:
            return Refusal(f"the result has rank {rank}, not (batch, heads, sequence, head size)")
        if softmax.attrs.get("axis", -1) not in (-1, 3):
            return Refusal(f"the softmax is over axis {softmax.attrs.get('axis')}, not the last", softmax.name)
        q, on_q = _unscaled(matmul.inputs[0])
        k_t, on_k = _unscaled(matmul.inputs[1])
        scale = factor * on_q * on_k
        if scale <= 0 or not math.isfinite(scale):
            return Refusal(f"the scale is {scale:g}", softmax.name)
        keys = _keys(k_t)
        if keys is None:
            return Refusal(f"'{k_t.name}' is not recognized as a transposed key", matmul.name)
        k, perm = keys
        v = node.inputs[1]
        if perm is None and unrepeated(k) is not k and unrepeated(v) is not v:
            k, v = unrepeated(k), unrepeated(v)
        kinds = {element_type(t) for t in (q, k, v)}
        if len(kinds) != 1 or None in kinds:
            return Refusal("the types of q, k and v differ or are not known")
        if mask is not None and not mask.shape:
            return Refusal(f"mask '{mask.name}' is a scalar, or its shape is not known")
        return _Attention(node, q, k, perm, v, mask, scale)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Attention) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node, "attention")
        emitter = Emitter(model, graph, name)
        k = match.k if match.k_permuted is None else emitter.transpose(match.k, match.k_permuted)
        mask = match.mask
        if mask is None:
            mask = no_mask(emitter, match.q)
        elif element_type(mask) != element_type(match.q):
            kind = element_type(match.q)
            mask = emitter.op("Cast", mask, dtype=match.q.dtype, shape=mask.shape, to=kind)
        place(graph, ops.ATTENTION, name, [match.q, k, match.v, mask], match.node, scale=match.scale)
        return f"Attention '{name}'"


RULES = (AttentionRule(),)
