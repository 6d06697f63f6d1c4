"""Rotary position embedding -> Rotary(x, cos, sin), with x (B, H, S, D) and tables as wide as x.

    Add(Mul(x, cos), Mul(Concat(Neg(x[D/2:]), x[:D/2]), sin))       -> Rotary(x, cos, sin)
    RotaryEmbedding (opset 23, com.microsoft), not interleaved      -> Rotary, on tables Concat(c, c)

Where the table comes from: opset 23 without position_ids has cos (B, S, D/2) already; otherwise rows of the cache
(positions, D/2) are gathered. A 3-D x (B, S, H·D) is split into heads and joined again.
Visits the main graph and its subgraphs.
"""

__all__ = ["RULES", "full_width", "positions_gathered"]

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, place, take_outputs
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name
from graphopt.passes.canonicalize.symbolic import integers

_MICROSOFT = "com.microsoft"
#: Ends of slices from here on mean "to the end", whatever the size.
_FAR = 1 << 30


@dataclass(frozen=True)
class _Rotation:
    node: gs.Node
    x: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor


def _half(node: gs.Node | None, width: int) -> tuple[gs.Tensor, int] | None:
    """Return ``(x, 0 or 1)`` if ``node`` gives the first or the second half of x's last axis of ``width``."""
    if not query.is_op(node, "Slice"):
        return None
    assert node is not None
    bounds = [integers(t) for t in node.inputs[1:]]
    if len(bounds) < 3 or any(b is None or len(b) != 1 or not isinstance(b[0], int) for b in bounds):
        return None
    (start, stop, axis), step = ([b[0] for b in bounds[:3] if b], bounds[3] if len(bounds) > 3 else [1])
    x = node.inputs[0]
    if step != [1] or axis not in (-1, len(x.shape) - 1):
        return None
    start, stop = (b + width if -_FAR < b < 0 else min(b, width) for b in (start, stop))
    return {(0, width // 2): (x, 0), (width // 2, width): (x, 1)}.get((start, stop))


def _is_turned(tensor: gs.Tensor, x: gs.Tensor, width: int) -> bool:
    """Whether ``tensor`` is rotate_half(x) = concat(-x[D/2:], x[:D/2])."""
    node = query.producer(tensor)
    if not query.is_op(node, "Concat") or node is None or len(node.inputs) != 2:
        return False
    if node.attrs.get("axis") not in (-1, len(x.shape) - 1):
        return False
    negated, low = query.producer(node.inputs[0]), query.producer(node.inputs[1])
    if negated is None or not query.is_op(negated, "Neg"):
        return False
    return _half(query.producer(negated.inputs[0]), width) == (x, 1) and _half(low, width) == (x, 0)


def _factors(tensor: gs.Tensor) -> list[gs.Tensor]:
    node = query.producer(tensor)
    return list(node.inputs) if node is not None and query.is_op(node, "Mul") else []


class RotaryRule(Rule):
    """Elementwise rotation by halves -> Rotary."""

    name = "rotary"
    anchors = ("Add",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Add"):
            return None
        for straight, crossed in (node.inputs, node.inputs[::-1]):
            for turned, sin in (pair for f in [_factors(crossed)] if len(f) == 2 for pair in (f, f[::-1])):
                if not query.is_op(query.producer(turned), "Concat"):
                    continue
                for x, cos in (pair for f in [_factors(straight)] if len(f) == 2 for pair in (f, f[::-1])):
                    found = self._check(node, x, cos, turned, sin)
                    if found is not None:
                        return found
        return None

    @staticmethod
    def _check(node: gs.Node, x: gs.Tensor, cos: gs.Tensor, turned: gs.Tensor, sin: gs.Tensor) -> Any:
        width = query.static_last_dim(x)
        concat = query.producer(turned)
        assert concat is not None
        sources = {id(n.inputs[0]) for t in concat.inputs for n in [_behind_neg(t)] if query.is_op(n, "Slice")}
        if id(x) not in sources:
            return None
        if width is None or x.shape is None:
            return Refusal(f"the head size (last dimension of '{x.name}') is not known")
        if not _is_turned(turned, x, width):
            return Refusal(
                f"'{turned.name}' is not concat(-x[D/2:], x[:D/2]) of all {width} channels (partial rotary?)"
            )
        if len(x.shape) != 4:
            return Refusal(f"'{x.name}' has rank {len(x.shape)}, not (batch, heads, sequence, head size)")
        return _Rotation(node, x, cos, sin)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Rotation) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node, "rotary")
        place(graph, ops.ROTARY, name, [match.x, match.cos, match.sin], match.node)
        return f"Rotary '{name}'"


def _behind_neg(tensor: gs.Tensor) -> gs.Node | None:
    node = query.producer(tensor)
    return query.producer(node.inputs[0]) if node is not None and query.is_op(node, "Neg") else node


def full_width(emitter: Emitter, table: gs.Tensor) -> gs.Tensor:
    """(..., D/2) -> (..., D): both halves of a head turn by the same angles."""
    shape = None if table.shape is None else list(table.shape)
    if shape and isinstance(shape[-1], int):
        shape[-1] *= 2
    return emitter.op("Concat", table, table, dtype=table.dtype, shape=shape, axis=-1)


def positions_gathered(emitter: Emitter, cache: gs.Tensor, positions: gs.Tensor) -> gs.Tensor:
    """Rows (positions..., D/2) of a table (max positions, D/2)."""
    lead = list(positions.shape) if positions.shape is not None else None
    shape = None if lead is None or cache.shape is None else [*lead, cache.shape[-1]]
    return emitter.op("Gather", cache, positions, dtype=cache.dtype, shape=shape, axis=0)


@dataclass(frozen=True)
class _Embedding:
    node: gs.Node
    x: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    positions: gs.Tensor | None


class RotaryEmbeddingRule(Rule):
    """RotaryEmbedding of opset 23 or com.microsoft -> Rotary."""

    name = "rotary-op"
    anchors = ("RotaryEmbedding",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        microsoft = query.is_op(node, "RotaryEmbedding", domain=_MICROSOFT)
        if not microsoft and not query.is_op(node, "RotaryEmbedding"):
            return None
        given = [t if not t.is_empty() else None for t in node.inputs] + [None] * 4
        x, positions, cos, sin = (given[i] for i in ((0, 1, 2, 3) if microsoft else (0, 3, 1, 2)))
        assert x is not None and cos is not None and sin is not None
        if node.attrs.get("interleaved", 0):
            return Refusal("interleaved is set: pairs of neighbours are rotated, canonical Rotary rotates halves")
        half = query.static_last_dim(cos)
        width = query.static_last_dim(x)
        if x.shape is None or half is None or width is None:
            return Refusal(f"the shapes of '{x.name}' and '{cos.name}' are not known")
        if len(x.shape) == 3:
            heads = int(node.attrs.get("num_heads", 0)) or (width // (2 * half) if microsoft else 0)
            width = width // heads if heads else 0
        partial = int(node.attrs.get("rotary_embedding_dim", 0))
        if width != 2 * half or partial not in (0, width):
            return Refusal(f"{partial or 2 * half} of {width} channels of a head are rotated (partial rotary)")
        if microsoft and (node.attrs.get("scale", 1.0) != 1.0 or node.attrs.get("is_packed_batching", 0)):
            return Refusal("scale is not 1, or the batch is packed")
        if microsoft and (positions is None or positions.shape is None or len(positions.shape) != 2):
            return Refusal("position_ids are not a (batch, sequence) tensor but an offset, or their rank is not known")
        return _Embedding(node, x, cos, sin, positions)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Embedding) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node, "rotary")
        emitter = Emitter(model, graph, name)
        tables = []
        for cache in (match.cos, match.sin):
            rows = cache if match.positions is None else positions_gathered(emitter, cache, match.positions)
            tables.append(emitter.unsqueeze(full_width(emitter, rows), [1]))
        x, node = match.x, match.node
        (output,) = take_outputs(node)
        if len(match.x.shape) == 3:
            x = emitter.split_heads(x, 2 * int(match.cos.shape[-1]))
            turned = gs.Variable(f"{name}/heads", x.dtype, x.shape)
            emitter.join_heads(turned, x.shape[1], x.shape[3], output)
            output = turned
        node.outputs.append(output)
        place(graph, ops.ROTARY, name, [x, *tables], node)
        return f"Rotary '{name}'"


RULES = (RotaryRule(), RotaryEmbeddingRule())
