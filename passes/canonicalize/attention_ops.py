"""Attention that is one node -> Attention(q, k, v, mask; scale) on heads (B, H, L, D), with standard nodes around it.

    Attention (opset 23)                        past concatenated, is_causal and bool masks written as additive masks
    GroupQueryAttention (com.microsoft)         packed or separate q, k, v; do_rotary -> Rotary; cache concatenated
    MultiHeadAttention (com.microsoft)          separate q, k, v (B, S, H·D)

GroupQueryAttention writes the new keys of sequence b behind its own length (seqlens_k[b] + 1 - S); here they are
appended to the cache. The two agree where all sequences of a batch have the same length, and for padded prompts, whose
padding is on the right and is never seen. The report says so. Visits the main graph and its subgraphs.
"""

__all__ = ["RULES"]

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, element_type, place, take_outputs
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import masks, ops
from graphopt.passes.canonicalize.attention import no_mask, unrepeated
from graphopt.passes.canonicalize.fused_node import Attributes, inputs_of, unknown
from graphopt.passes.canonicalize.naming import canonical_name
from graphopt.passes.canonicalize.rotary import full_width, positions_gathered
from graphopt.passes.canonicalize.symbolic import dimension, integers

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Fused:
    """A match: the node, its given inputs by name, and the sizes of its heads."""

    node: gs.Node
    given: dict[str, gs.Tensor]
    heads: int
    kv_heads: int
    size: int


def _wanted(graph: gs.Graph, node: gs.Node, index: int) -> bool:
    """Whether output ``index`` of ``node`` is read."""
    if len(node.outputs) <= index or node.outputs[index].is_empty():
        return False
    return bool(node.outputs[index].outputs) or query.is_output(graph, node.outputs[index])


def _heads_of(emitter: Emitter, x: gs.Tensor, heads: int) -> gs.Tensor:
    """(B, L, H·D) -> (B, H, L, D); undoes a join of heads instead of splitting what was just joined."""
    reshape = query.producer(x)
    transpose = query.producer(reshape.inputs[0]) if reshape is not None and query.is_op(reshape, "Reshape") else None
    if transpose is not None and query.is_op(transpose, "Transpose"):
        source = transpose.inputs[0]
        joins = list(transpose.attrs.get("perm", [])) == [0, 2, 1, 3] and dimension(source, 1) == heads
        target = integers(reshape.inputs[1]) if reshape is not None else None
        if joins and target is not None and target[:2] == [0, 0] and len(target) == 3:
            return source
    return emitter.split_heads(x, int(x.shape[-1]) // heads)


def _name_head_size(tensors: Iterable[gs.Tensor | None], size: int) -> None:
    """Write the head size, which the weights fix, into caches that are declared with a symbol for it."""
    for tensor in tensors:
        if tensor is not None and tensor.shape is not None and not isinstance(tensor.shape[-1], int):
            tensor.shape = [*tensor.shape[:-1], size]


def _cached(emitter: Emitter, past: gs.Tensor | None, new: gs.Tensor, present: gs.Tensor | None) -> gs.Tensor:
    """Return past and new keys (or values) along L, as the present output if there is one."""
    if past is None and present is None:
        return new
    if past is None:
        return emitter.op("Identity", new, like=new, out=present)
    total = present if present is not None else gs.Variable(f"{new.name}_cached", new.dtype, None)
    return emitter.op("Concat", past, new, out=total, axis=2)


def _finish(
    model: Model, graph: gs.Graph, emitter: Emitter, match: _Fused, heads: list[gs.Tensor], mask: gs.Tensor | None,
    output: gs.Tensor, *, joined: bool, scale: float,
) -> str:  # fmt: skip
    """Place the canonical node; ``joined`` outputs are (B, S, H·D)."""
    node, q = match.node, heads[0]
    result = output
    if joined:
        result = gs.Variable(f"{emitter.stem}/heads", output.dtype or q.dtype, q.shape)
        emitter.join_heads(result, match.heads, match.size, output)
    mask = no_mask(emitter, q) if mask is None else mask
    node.outputs.append(result)
    place(graph, ops.ATTENTION, emitter.stem, [*heads, mask], node, scale=scale)
    return f"Attention '{emitter.stem}'"


class StandardAttentionRule(Rule):
    """Attention of opset 23 -> Attention."""

    name = "attention-op"
    anchors = ("Attention",)
    _INPUTS = ("q", "k", "v", "mask", "past_key", "past_value")
    _ATTRIBUTES: ClassVar[Attributes] = {
        **dict.fromkeys(("is_causal", "kv_num_heads", "q_num_heads", "scale", "softmax_precision")),
        "qk_matmul_output_mode": None,  # of an output that must not be read
        "softcap": (0,),
        **dict.fromkeys(("left_window_size", "right_window_size"), (-1,)),
    }

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Attention"):
            return None
        if reason := unknown(node, self._INPUTS, self._ATTRIBUTES):
            return Refusal(reason)
        if _wanted(graph, node, 3):
            return Refusal(f"its output '{node.outputs[3].name}' of scores is read")
        given = inputs_of(node, self._INPUTS)
        q, k = given["q"], given["k"]
        if any(t.shape is None or not isinstance(t.shape[-1], int) for t in (q, k)) or element_type(q) is None:
            return Refusal(f"the types or shapes of '{q.name}' and '{k.name}' are not known")
        mask = given.get("mask")
        if mask is not None and (mask.shape is None or not 2 <= len(mask.shape) <= 4 or mask.dtype is None):
            return Refusal(f"the type or shape of mask '{mask.name}' is not known")
        if len(q.shape) == 4:
            return _Fused(node, given, 0, 0, q.shape[-1])
        heads, kv_heads = (int(node.attrs.get(a, 0)) for a in ("q_num_heads", "kv_num_heads"))
        if not heads or not kv_heads:
            return Refusal("q_num_heads and kv_num_heads are not given for inputs of rank 3")
        return _Fused(node, given, heads, kv_heads, q.shape[-1] // heads)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Fused) -> str:
        """See `Rule.rewrite`."""
        node, given = match.node, match.given
        emitter = Emitter(model, graph, canonical_name(model, node, "attention"))
        output, *presents = take_outputs(node)
        q, k, v = given["q"], given["k"], given["v"]
        joined = len(q.shape) == 3
        if joined:
            widths = (match.size, k.shape[-1] // match.kv_heads, v.shape[-1] // match.kv_heads)
            q, k, v = (emitter.split_heads(t, w) for t, w in zip((q, k, v), widths, strict=True))
        present = [t if not t.is_empty() else None for t in presents[:2]] + [None, None]
        k = _cached(emitter, given.get("past_key"), k, present[0])
        v = _cached(emitter, given.get("past_value"), v, present[1])
        if unrepeated(k) is not k and unrepeated(v) is not v:
            k, v = unrepeated(k), unrepeated(v)
        added = []
        if node.attrs.get("is_causal", 0):
            past = given.get("past_key")
            offset = None if past is None else emitter.dims(past, 2, 3)
            allowed = masks.causal(emitter, emitter.dims(q, 2, 3), offset, keys=emitter.dims(k, 2, 3))
            added.append(masks.additive(emitter, allowed, q))
        if (mask := given.get("mask")) is not None:
            added.append(masks.additive(emitter, mask, q) if mask.dtype == np.bool_ else mask)
        scale = float(node.attrs.get("scale", match.size**-0.5))
        match = _Fused(node, given, match.heads, match.kv_heads, v.shape[-1] if v.shape else match.size)
        return _finish(
            model, graph, emitter, match, [q, k, v], masks.combine(emitter, added), output, joined=joined, scale=scale
        )


class GroupQueryAttentionRule(Rule):
    """GroupQueryAttention of com.microsoft -> Rotary, cache and Attention."""

    name = "attention-gqa"
    anchors = ("GroupQueryAttention",)
    _INPUTS = (
        "q", "k", "v", "past_key", "past_value", "seqlens_k", "total", "cos", "sin", "positions", "bias", "sink",
        "k_scale", "v_scale",
    )  # fmt: skip
    _ATTRIBUTES: ClassVar[Attributes] = {
        **dict.fromkeys(("num_heads", "kv_num_heads", "scale", "do_rotary", "local_window_size")),
        **dict.fromkeys(("qk_norm_epsilon", "kv_cache_bit_width")),  # of inputs that are not understood
        **dict.fromkeys(("softcap", "rotary_interleaved", "qk_output", "sliding_window_cache"), (0,)),
        **dict.fromkeys(("k_quant_type", "v_quant_type"), ("NONE",)),
        "smooth_softmax": (0, -1),
        "causal": (1,),
    }

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "GroupQueryAttention", domain=_MICROSOFT):
            return None
        if reason := unknown(node, self._INPUTS, self._ATTRIBUTES):
            return Refusal(reason)
        attrs, given = node.attrs, inputs_of(node, self._INPUTS)
        heads, kv_heads = int(attrs["num_heads"]), int(attrs["kv_num_heads"])
        for name in ("sink", "k_scale", "v_scale"):
            if name in given:
                return Refusal(f"{name} '{given[name].name}' is given (attention sinks, quantized cache)")
        if "past_key" not in given or "past_value" not in given:
            return Refusal("past_key and past_value are not given")
        width = query.static_last_dim(given["q"])
        if width is None or element_type(given["q"]) is None:
            return Refusal(f"the type or last dimension of '{given['q'].name}' is not known")
        size = width // (heads if "k" in given else heads + 2 * kv_heads)
        if attrs.get("do_rotary", 0):
            if "cos" not in given or query.static_last_dim(given["cos"]) != size // 2:
                return Refusal(f"the rotary table does not turn all {size} channels of a head (partial rotary)")
            if "positions" in given:
                return Refusal(f"positions '{given['positions'].name}' are given")
        return _Fused(node, given, heads, kv_heads, size)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Fused) -> str:
        """See `Rule.rewrite`."""
        node, given = match.node, match.given
        emitter = Emitter(model, graph, canonical_name(model, node, "attention"))
        output, *presents = take_outputs(node)
        _name_head_size([given["past_key"], given["past_value"], *presents[:2]], match.size)
        q, k, v = self._heads(emitter, match)
        length = masks.shared_length(emitter, given["q"], 1)
        past = masks.shared_length(emitter, given["past_key"], 2)
        if node.attrs.get("do_rotary", 0):
            positions = masks.step_positions(emitter, length, past)
            tables = [full_width(emitter, positions_gathered(emitter, given[t], positions)) for t in ("cos", "sin")]
            q, k = (self._turned(graph, emitter, x, tables, what) for x, what in ((q, "q"), (k, "k")))
        present = [t if not t.is_empty() else None for t in presents[:2]] + [None, None]
        k = _cached(emitter, given["past_key"], k, present[0])
        v = _cached(emitter, given["past_value"], v, present[1])
        added = [masks.additive(emitter, self._allowed(emitter, match, length, past), q)]
        if "bias" in given:
            added.append(given["bias"])
        scale = float(node.attrs.get("scale", 0.0)) or match.size**-0.5
        mask = masks.combine(emitter, added)
        done = _finish(model, graph, emitter, match, [q, k, v], mask, output, joined=True, scale=scale)
        return f"{done}; sequences of one batch must have one length when decoding"

    @staticmethod
    def _heads(emitter: Emitter, match: _Fused) -> list[gs.Tensor]:
        """Return q (B, Hq, S, D), k and v (B, Hkv, S, D)."""
        given = match.given
        if "k" in given:
            return [emitter.split_heads(given[t], match.size) for t in ("q", "k", "v")]
        packed = emitter.split_heads(given["q"], match.size)
        bounds = [0, match.heads, match.heads + match.kv_heads, match.heads + 2 * match.kv_heads]
        lead, *rest = packed.shape if packed.shape is not None else [None] * 4
        axis = emitter.const([1])
        return [
            emitter.op(
                "Slice",
                packed,
                emitter.const([start]),
                emitter.const([stop]),
                axis,
                dtype=packed.dtype,
                shape=[lead, stop - start, *rest[1:]],
            )
            for start, stop in pairwise(bounds)
        ]

    @staticmethod
    def _turned(graph: gs.Graph, emitter: Emitter, x: gs.Tensor, tables: list[gs.Tensor], what: str) -> gs.Tensor:
        name = f"{emitter.stem}/{what}_rotary"
        out = gs.Variable(f"{name}_output", x.dtype, x.shape)
        graph.nodes.append(ops.ROTARY.node(name, [x, *tables], [out]))
        return out

    @staticmethod
    def _allowed(emitter: Emitter, match: _Fused, length: gs.Tensor, past: gs.Tensor) -> gs.Tensor:
        """Return bool (B, 1, S, L): causal, within the window, and no padding of a prompt behind its last token."""
        window = int(match.node.attrs.get("local_window_size", -1))
        seen = masks.causal(emitter, length, past, window)
        last = emitter.op("Cast", match.given["seqlens_k"], dtype=np.int64, shape=[None], to=7)
        last = emitter.op("Reshape", last, emitter.const([-1, 1, 1, 1]), dtype=np.int64, shape=[None, 1, 1, 1])
        total = emitter.op("Add", past, length, dtype=np.int64, shape=[1])
        every = masks.step_positions(emitter, total, None)
        real = emitter.op("LessOrEqual", every, last, dtype=np.bool_, shape=[None, 1, 1, None])
        return emitter.op("And", seen, real, dtype=np.bool_, shape=[None, 1, None, None])


class MultiHeadAttentionRule(Rule):
    """MultiHeadAttention of com.microsoft with separate q, k, v -> Attention."""

    name = "attention-mha"
    anchors = ("MultiHeadAttention",)
    _INPUTS = ("q", "k", "v", "bias", "padding", "mask", "past_key", "past_value")
    _ATTRIBUTES: ClassVar[Attributes] = {
        **dict.fromkeys(("num_heads", "scale")),
        "mask_filter_value": None,  # of an input that is not understood
        "unidirectional": (0,),
    }

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "MultiHeadAttention", domain=_MICROSOFT):
            return None
        if reason := unknown(node, self._INPUTS, self._ATTRIBUTES):
            return Refusal(reason)
        given = inputs_of(node, self._INPUTS)
        for name in ("bias", "padding"):
            if name in given:
                return Refusal(f"{name} '{given[name].name}' is given")
        if _wanted(graph, node, 3):
            return Refusal(f"its output '{node.outputs[3].name}' of scores is read")
        tensors = [given.get(t) for t in ("q", "k", "v")]
        if any(t is None or t.shape is None or len(t.shape) != 3 for t in tensors):
            return Refusal("q, k and v are not three tensors of rank 3 (packed, or already split into heads)")
        heads = int(node.attrs["num_heads"])
        widths = [query.static_last_dim(t) for t in tensors if t is not None]
        if None in widths or element_type(given["q"]) is None:
            return Refusal("the types or last dimensions of q, k and v are not known")
        return _Fused(node, given, heads, heads, int(widths[0] or 0) // heads)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Fused) -> str:
        """See `Rule.rewrite`."""
        node, given = match.node, match.given
        emitter = Emitter(model, graph, canonical_name(model, node, "attention"))
        output, *presents = take_outputs(node)
        q, k, v = (_heads_of(emitter, given[t], match.heads) for t in ("q", "k", "v"))
        present = [t if not t.is_empty() else None for t in presents[:2]] + [None, None]
        k = _cached(emitter, given.get("past_key"), k, present[0])
        v = _cached(emitter, given.get("past_value"), v, present[1])
        if unrepeated(k) is not k and unrepeated(v) is not v:
            k, v = unrepeated(k), unrepeated(v)
        scale = float(node.attrs.get("scale", 0.0)) or match.size**-0.5
        match = _Fused(node, given, match.heads, match.heads, int(given["v"].shape[-1]) // match.heads)
        return _finish(model, graph, emitter, match, [q, k, v], given.get("mask"), output, joined=True, scale=scale)


RULES = (StandardAttentionRule(), GroupQueryAttentionRule(), MultiHeadAttentionRule())
