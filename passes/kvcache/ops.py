"""CachedAttention: rotary, append to a cache of fixed capacity, and attention over it, in one op.

The cache is what an exported decoder concatenates, kept at one address: past and present have the same shape, and where
a runtime gives them the same memory, the kernel writes the new rows and copies nothing.
"""

__all__ = ["CACHED_ATTENTION", "OPS"]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.passes.kvcache import numerics


def _dims(b: BodyBuilder, tensor: str, start: int, stop: int) -> str:
    return str(b.op("Slice", b.op("Shape", tensor), b.const([start], np.int64), b.const([stop], np.int64)))


def _range(b: BodyBuilder, count: str) -> str:
    """Return 0, 1, ... below the int64 vector of one element ``count``."""
    scalar = b.op("Reshape", count, b.const(np.zeros(0), np.int64))
    return str(b.op("Range", b.const(0, np.int64), scalar, b.const(1, np.int64)))


def _unsqueezed(b: BodyBuilder, x: str, *axes: int) -> str:
    return str(b.op("Unsqueeze", x, b.const(axes, np.int64)))


def _rotated(b: BodyBuilder, x: str, like: str) -> str:
    """Return T(x · cos + rotate_half(x) · sin), or x where the attribute rotary is 0; (B, S, H, D) -> (B, H, S, D)."""
    value = b.cast(x)
    width, last = _dims(b, x, 3, 4), b.const([-1], np.int64)
    half = b.op("Div", width, b.const([2], np.int64))
    low = b.op("Slice", value, b.const([0], np.int64), half, last)
    high = b.op("Slice", value, half, width, last)
    turned = b.op("Concat", b.op("Neg", high), low, axis=-1)
    cos, sin = (_unsqueezed(b, b.cast(table), 2) for table in ("cos", "sin"))
    rotated = b.op("Add", b.op("Mul", value, cos), b.op("Mul", turned, sin))
    rotary = b.cast(b.attribute("rotary", onnx.AttributeProto.INT), onnx.TensorProto.BOOL)
    return str(b.op("Transpose", b.cast_like(b.op("Where", rotary, rotated, value), like), perm=[0, 2, 1, 3]))


def _rows_of_present(b: BodyBuilder, start: str) -> str:
    """Return (B, Hkv, C): for each row of present its number among all rows of past ++ new, (B, Hkv, C + S).

    New rows are taken through the rows of a matrix, because ONNX has no gather along one axis that differs by sequence
    and moves whole rows.
    """
    lead, capacity, seq = _dims(b, "past_k", 0, 2), _dims(b, "past_k", 2, 3), _dims(b, "k", 1, 2)
    slot = _unsqueezed(b, _range(b, capacity), 0)
    new = b.op("Sub", slot, start)
    is_new = b.op("And", b.op("GreaterOrEqual", new, b.const(0, np.int64)), b.op("Less", new, seq))
    source = _unsqueezed(b, b.op("Where", is_new, b.op("Add", capacity, new), slot), 1)
    heads = b.op("Mul", _dims(b, "past_k", 0, 1), _dims(b, "past_k", 1, 2))
    first = b.op("Mul", _range(b, heads), b.op("Add", capacity, seq))
    first = b.op("Reshape", first, b.op("Concat", lead, b.const([1], np.int64), axis=0))
    return str(b.op("Add", first, source))


def _appended(b: BodyBuilder, past: str, new: str, rows: str, out: str) -> None:
    """Write ``out`` (B, Hkv, C, D): the ``rows`` of past (B, Hkv, C, D) ++ new (B, Hkv, S, D)."""
    both = b.op("Concat", past, new, axis=2)
    flat = b.op("Reshape", both, b.op("Concat", b.const([-1], np.int64), _dims(b, past, 3, 4), axis=0))
    b.op("Gather", flat, rows, axis=0, outputs=[out])


def _attend(b: BodyBuilder, q: str, start: str) -> None:
    """Write y: softmax(scale · q present_kᵀ) present_v over the rows up to each query's own, in float32.

    The query heads of one key/value head are stacked along S: one matrix product per key head, nothing is repeated.
    """
    batch, heads, seq = _dims(b, "q", 0, 1), _dims(b, "q", 2, 3), _dims(b, "q", 1, 2)
    kv_heads, capacity, size = (_dims(b, "past_k", i, i + 1) for i in (1, 2, 3))
    rows = b.op("Mul", b.op("Div", heads, kv_heads), seq)
    stacked = b.op("Reshape", b.cast(q), b.op("Concat", batch, kv_heads, rows, size, axis=0))
    product = b.op("MatMul", stacked, b.op("Transpose", b.cast("present_k"), perm=[0, 1, 3, 2]))
    scores = b.op("Mul", product, b.attribute("scale"))
    scores = b.op("Reshape", scores, b.op("Concat", batch, heads, seq, capacity, axis=0))
    slot = _range(b, capacity)
    query = _unsqueezed(b, b.op("Add", start, _unsqueezed(b, _range(b, seq), 0)), 1, 3)
    seen = b.op("LessOrEqual", slot, query)
    weights = b.op("Softmax", b.op("Where", seen, scores, b.const(-math.inf)), axis=-1)
    weights = b.op("Reshape", weights, b.op("Concat", batch, kv_heads, rows, capacity, axis=0))
    # Rows that nothing was written to may hold anything: a weight of 0 would turn their NaN into the sum's.
    written = _unsqueezed(b, b.op("Less", slot, b.op("Add", start, seq)), 1, 3)
    values = b.op("Where", written, b.cast("present_v"), b.const(0.0))
    mixed = b.op("MatMul", weights, values)
    mixed = b.op("Reshape", mixed, b.op("Concat", batch, heads, seq, size, axis=0))
    b.cast_like(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), "q", out="y")


def _body(b: BodyBuilder) -> None:
    first = b.op("Max", b.cast("start", onnx.TensorProto.INT64), b.const(0, np.int64))
    start = _unsqueezed(b, first, 1)
    q, k = _rotated(b, "q", "q"), _rotated(b, "k", "k")
    rows = _rows_of_present(b, start)
    _appended(b, "past_k", k, rows, "present_k")
    _appended(b, "past_v", b.op("Transpose", "v", perm=[0, 2, 1, 3]), rows, "present_v")
    _attend(b, q, start)


def _examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    """Two sequences of five new tokens: one in the middle of the cache, one of which two tokens do not fit."""
    batch, seq, heads, kv_heads, size, capacity = 2, 5, 6, 3, 8, 11
    q, k, v = (rng.standard_normal((batch, seq, n, size)) for n in (heads, kv_heads, kv_heads))
    q[..., 3] *= 9
    angles = np.tile(rng.uniform(-3, 3, (batch, seq, size // 2)), 2)
    past = [rng.standard_normal((batch, kv_heads, capacity, size)).astype(dtype) for _ in range(2)]
    for cache in past:
        cache[0, :, 8:] = np.nan  # memory that nothing was written to
    given = (x.astype(dtype) for x in (q, k, v, np.cos(angles), np.sin(angles)))
    return (*given, *past, np.array([3, 8], np.int32))


CACHED_ATTENTION = OpSpec(
    name="CachedAttention",
    family="CachedAttention",
    doc="present = past with the rows start[b] .. start[b] + S - 1 of sequence b replaced by k' = rotary(k) and v, "
    "those from C on dropped; y[b, i] = T(softmax over j <= start[b] + i of scale * rotary(q)[b, i] . present_k[b, j], "
    "times present_v), softmax and sums in float32 (Vaswani et al., 2017, eq. 1; Su et al., 2021, eq. 34, on halves); "
    "query head h reads key/value head h // (Hq / Hkv); a start below 0 counts as 0.",
    inputs=(
        Param("q", "(B, S, Hq, D) T"),
        Param("k", "(B, S, Hkv, D) T; Hq is a multiple of Hkv"),
        Param("v", "(B, S, Hkv, D) T"),
        Param("cos", "(1 or B, S, D) T; (1, 1, D), not read, if not rotary"),
        Param("sin", "as cos"),
        Param("past_k", "(B, Hkv, C, D) T: rotated keys; rows from start[b] on are not read"),
        Param("past_v", "(B, Hkv, C, D) T"),
        Param("start", "(B,) int32: rows that each sequence has already"),
    ),
    outputs=(
        Param("y", "(B, S, Hq, D) T"),
        Param("present_k", "(B, Hkv, C, D) T; may be the memory of past_k"),
        Param("present_v", "(B, Hkv, C, D) T; may be the memory of past_v"),
    ),
    attributes=(
        Attribute("scale", 1.0, "factor on q . k"),
        Attribute("rotary", 1, "1: q and k are rotated by halves; 0: they are taken as they are"),
    ),
    body=_body,
    evaluate=lambda *inputs, scale=1.0, rotary=1: numerics.cached_attention(*inputs, scale=scale, rotary=rotary),
    examples=_examples,
    plugin=True,
)

OPS: tuple[OpSpec, ...] = (CACHED_ATTENTION,)
