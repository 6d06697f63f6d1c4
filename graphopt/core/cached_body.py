"""What the bodies of ops over a cache of fixed capacity have in common, whatever the cache's format is.

The functions read the op's inputs q, k, cos, sin, past_k and start by these names, and its attributes scale and rotary;
shapes are those of `graphopt.passes.kvcache.ops.CACHED_ATTENTION`, but for the last dimension of past_k.
"""

__all__ = ["appended", "attend", "first_rows", "rotated", "rows_of_present"]

import math

import numpy as np
import onnx

from graphopt.core.body import BodyBuilder


def first_rows(b: BodyBuilder) -> str:
    """Return start, at least 0, as (B, 1) int64."""
    return _unsqueezed(b, b.op("Max", b.cast("start", onnx.TensorProto.INT64), b.const(0, np.int64)), 1)


def _dims(b: BodyBuilder, tensor: str, start: int, stop: int) -> str:
    return str(b.op("Slice", b.op("Shape", tensor), b.const([start], np.int64), b.const([stop], np.int64)))


def _range(b: BodyBuilder, count: str) -> str:
    """Return 0, 1, ... below the int64 vector of one element ``count``."""
    scalar = b.op("Reshape", count, b.const(np.zeros(0), np.int64))
    return str(b.op("Range", b.const(0, np.int64), scalar, b.const(1, np.int64)))


def _unsqueezed(b: BodyBuilder, x: str, *axes: int) -> str:
    return str(b.op("Unsqueeze", x, b.const(axes, np.int64)))


def rotated(b: BodyBuilder, x: str, like: str) -> str:
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


def rows_of_present(b: BodyBuilder, start: str) -> str:
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


def appended(b: BodyBuilder, past: str, new: str, rows: str, out: str | None = None) -> str:
    """Return (B, Hkv, C, D): the ``rows`` of past (B, Hkv, C, D) ++ new (B, Hkv, S, D), named ``out`` if given."""
    both = b.op("Concat", past, new, axis=2)
    flat = b.op("Reshape", both, b.op("Concat", b.const([-1], np.int64), _dims(b, past, 3, 4), axis=0))
    return str(b.op("Gather", flat, rows, axis=0, outputs=[out] if out else 1))


def attend(b: BodyBuilder, q: str, keys: str, values: str, start: str) -> None:
    """Write y: softmax(scale · q keysᵀ) values over the rows up to each query's own, in float32.

    keys and values are (B, Hkv, C, D) float32, all rows of the cache.

    The query heads of one key/value head are stacked along S: one matrix product per key head, nothing is repeated.
    """
    batch, heads, seq = _dims(b, "q", 0, 1), _dims(b, "q", 2, 3), _dims(b, "q", 1, 2)
    kv_heads, capacity, size = _dims(b, "past_k", 1, 2), _dims(b, "past_k", 2, 3), _dims(b, "q", 3, 4)
    rows = b.op("Mul", b.op("Div", heads, kv_heads), seq)
    stacked = b.op("Reshape", b.cast(q), b.op("Concat", batch, kv_heads, rows, size, axis=0))
    product = b.op("MatMul", stacked, b.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = b.op("Mul", product, b.attribute("scale"))
    scores = b.op("Reshape", scores, b.op("Concat", batch, heads, seq, capacity, axis=0))
    slot = _range(b, capacity)
    query = _unsqueezed(b, b.op("Add", start, _unsqueezed(b, _range(b, seq), 0)), 1, 3)
    seen = b.op("LessOrEqual", slot, query)
    weights = b.op("Softmax", b.op("Where", seen, scores, b.const(-math.inf)), axis=-1)
    weights = b.op("Reshape", weights, b.op("Concat", batch, kv_heads, rows, capacity, axis=0))
    # Rows that nothing was written to may hold anything: a weight of 0 would turn their NaN into the sum's.
    written = _unsqueezed(b, b.op("Less", slot, b.op("Add", start, seq)), 1, 3)
    mixed = b.op("MatMul", weights, b.op("Where", written, values, b.const(0.0)))
    mixed = b.op("Reshape", mixed, b.op("Concat", batch, heads, seq, size, axis=0))
    b.cast_like(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), "q", out="y")
