"""VQCachedAttention: CachedAttention over a cache of codes.

A key head's channels are cut into groups of v; a vector of v channels of a token is one byte, the entry of the group's
codebook that is nearest to it. Bytes are INT8 at the boundary: code c is the byte c - 256 from 128 on.
"""

__all__ = ["CACHED_ATTENTION", "OPS", "cached_attention", "decode_cache", "encode_cache"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.cached_body import appended, attend, first_rows, rotated, rows_of_present
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics import layers
from graphopt.numerics.cached_attention import append
from graphopt.numerics.cached_attention import attend as attend_rows

_ENTRIES = 256


def encode_cache(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the bytes of the nearest entries, the lowest code of equally near ones.

    A vector that holds NaN or Inf is as far from every entry, and gets code 0.

    Args:
        x: (..., Hkv, D), any float type.
        codebook: (Hkv, G, 256, v), any float type, G·v = D.

    Returns:
        (..., Hkv, G) int8.
    """
    heads, groups, _, v = codebook.shape
    vectors = x.astype(np.float32).reshape(*x.shape[:-2], heads, groups, 1, v)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.square(vectors - codebook.astype(np.float32)).sum(axis=-1)
    nearest = np.where(np.isnan(distance), np.float32(np.inf), distance).argmin(axis=-1)
    return nearest.astype(np.uint8).view(np.int8)


def decode_cache(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return what bytes stand for: (B, Hkv, C, G) int8 -> (B, Hkv, C, D) float32."""
    heads, groups, _, v = codebook.shape
    h, g = np.arange(heads)[:, None, None], np.arange(groups)
    entries = codebook.astype(np.float32)[h, g, codes.view(np.uint8)]
    return entries.reshape(*codes.shape[:3], groups * v)


def cached_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    past_k: np.ndarray,
    past_v: np.ndarray,
    start: np.ndarray,
    codebook_k: np.ndarray,
    codebook_v: np.ndarray,
    *,
    scale: float = 1.0,
    rotary: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y, present_k, present_v; shapes as in `CACHED_ATTENTION`."""
    if rotary:
        q, k = (layers.rotary(x, cos[:, :, None], sin[:, :, None]) for x in (q, k))
    present_k = append(past_k, encode_cache(k, codebook_k), start)
    present_v = append(past_v, encode_cache(v, codebook_v), start)
    keys, values = decode_cache(present_k, codebook_k), decode_cache(present_v, codebook_v)
    return attend_rows(q, keys, values, start, scale), present_k, present_v


def _const(b: BodyBuilder, *values: int) -> Any:
    return b.const(values, np.int64)


def _dims(b: BodyBuilder, tensor: str, start: int, stop: int) -> Any:
    return b.op("Slice", b.op("Shape", tensor), _const(b, start), _const(b, stop))


def _range(b: BodyBuilder, count: str) -> Any:
    stop = b.op("Reshape", count, b.const(np.zeros(0), np.int64))
    return b.op("Range", b.const(0, np.int64), stop, b.const(1, np.int64))


def _encoded(b: BodyBuilder, x: str, codebook: str) -> Any:
    """(B, Hkv, S, D) T -> the nearest codes (B, Hkv, S, G), 0 .. 255 as float32."""
    # Entries are the last axis: ONNX Runtime then takes half as long.
    sizes = _dims(b, codebook, 1, 2), _dims(b, codebook, 3, 4)
    vectors = b.op("Reshape", b.cast(x), b.op("Concat", _dims(b, x, 0, 3), *sizes, _const(b, 1), axis=0))
    entries = b.op("Transpose", b.op("Unsqueeze", b.cast(codebook), _const(b, 1)), perm=[0, 1, 2, 4, 3])
    apart = b.op("Sub", vectors, entries)
    distance = b.reduce("Sum", b.op("Mul", apart, apart), -2, keepdims=0)
    known = b.op("Where", b.op("IsNaN", distance), b.const(np.inf), distance)
    return b.cast(b.op("ArgMin", known, axis=-1, keepdims=0))


def _appended_codes(b: BodyBuilder, past: str, new: str, codebook: str, rows: str, out: str) -> Any:
    """Write ``out`` and return the codes 0 .. 255 of all rows, (B, Hkv, C, G) float32."""
    signed = b.op("DequantizeLinear", past, b.const(1.0), b.const(0, np.int8))
    least, wrap = b.const(0.0), b.const(float(_ENTRIES))
    codes = b.op("Where", b.op("Less", signed, least), b.op("Add", signed, wrap), signed)
    codes = appended(b, codes, _encoded(b, new, codebook), rows)
    signed = b.op("Where", b.op("Less", codes, b.const(_ENTRIES / 2)), codes, b.op("Sub", codes, wrap))
    b.op("QuantizeLinear", signed, b.const(1.0), b.const(0, np.int8), outputs=[out])
    return codes


def _decoded(b: BodyBuilder, codes: str, codebook: str) -> Any:
    """(B, Hkv, C, G) codes -> (B, Hkv, C, D) float32."""
    heads, groups, v = (_dims(b, codebook, i, i + 1) for i in (0, 1, 3))
    entries = b.const([_ENTRIES], np.int64)
    first = b.op("Mul", _range(b, b.op("Mul", heads, groups)), entries)
    first = b.op("Reshape", first, b.op("Concat", heads, _const(b, 1), groups, axis=0))
    flat = b.op("Reshape", b.cast(codebook), b.op("Concat", _const(b, -1), v, axis=0))
    vectors = b.op("Gather", flat, b.op("Add", b.cast(codes, 7), first), axis=0)
    size = b.op("Mul", groups, v)
    return b.op("Reshape", vectors, b.op("Concat", _dims(b, codes, 0, 3), size, axis=0))


def _body(b: BodyBuilder) -> None:
    start = first_rows(b)
    q, k = rotated(b, "q", "q"), rotated(b, "k", "k")
    v = b.op("Transpose", "v", perm=[0, 2, 1, 3])
    rows = rows_of_present(b, start)
    keys = _appended_codes(b, "past_k", k, "codebook_k", rows, "present_k")
    values = _appended_codes(b, "past_v", v, "codebook_v", rows, "present_v")
    attend(b, q, _decoded(b, keys, "codebook_k"), _decoded(b, values, "codebook_v"), start)


def _examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    """Two sequences of five new tokens: one in the middle of the cache, one of which two tokens do not fit."""
    batch, seq, heads, kv_heads, size, capacity, vector = 2, 5, 6, 3, 8, 11, 2
    q, k, v = (rng.standard_normal((batch, seq, n, size)) for n in (heads, kv_heads, kv_heads))
    q[..., 3] *= 9
    angles = np.tile(rng.uniform(-3, 3, (batch, seq, size // 2)), 2)
    given = (x.astype(dtype) for x in (q, k, v, np.cos(angles), np.sin(angles)))
    shape = batch, kv_heads, capacity, size // vector
    past = (rng.integers(-128, 128, shape).astype(np.int8) for _ in range(2))
    codebooks = (rng.standard_normal((kv_heads, size // vector, _ENTRIES, vector)).astype(dtype) for _ in range(2))
    return (*given, *past, np.array([3, 8], np.int32), *codebooks)


def _damage(constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Codebooks that have no entry for a byte, or entries that are no numbers (`OpSpec.damage`)."""
    for name in ("codebook_k", "codebook_v"):
        codebook = constants.get(name)
        if codebook is not None and (codebook.ndim != 4 or codebook.shape[2] != _ENTRIES):
            return name, f"has shape {codebook.shape}, not (Hkv, G, {_ENTRIES}, v)"
        if codebook is not None and not np.isfinite(codebook).all():
            return name, "holds NaN or Inf"
    return None


CACHED_ATTENTION = OpSpec(
    name="VQCachedAttention",
    family="CachedAttention",
    doc="CachedAttention over codes: present = past with the rows start[b] .. start[b] + S - 1 of sequence b replaced "
    "by the nearest entries to k' = rotary(k) and v, the lowest code of equally near ones; y[b, i] = T(softmax over "
    "j <= start[b] + i of scale * rotary(q)[b, i] . K[b, j], times V), K and V the entries of all rows, the new ones "
    "among them (VQ-LLM, HPCA'25; Zhang et al., Coupled Quantization, 2024); softmax and sums in float32.",
    inputs=(
        Param("q", "(B, S, Hq, D) T"),
        Param("k", "(B, S, Hkv, D) T; Hq is a multiple of Hkv"),
        Param("v", "(B, S, Hkv, D) T"),
        Param("cos", "(1 or B, S, D) T; (1, 1, D), not read, if not rotary"),
        Param("sin", "as cos"),
        Param("past_k", "(B, Hkv, C, G) int8: codes of rotated keys, byte g that of channels v g .. v g + v - 1"),
        Param("past_v", "(B, Hkv, C, G) int8"),
        Param("start", "(B,) int32: rows that each sequence has already; below 0 counts as 0"),
        Param("codebook_k", "(Hkv, G, 256, v) T, G v = D"),
        Param("codebook_v", "(Hkv, G, 256, v) T"),
    ),
    outputs=(
        Param("y", "(B, S, Hq, D) T"),
        Param("present_k", "(B, Hkv, C, G) int8; may be the memory of past_k"),
        Param("present_v", "(B, Hkv, C, G) int8; may be the memory of past_v"),
    ),
    attributes=(
        Attribute("scale", 1.0, "factor on q . k"),
        Attribute("rotary", 1, "1: q and k are rotated by halves; 0: they are taken as they are"),
    ),
    body=_body,
    evaluate=cached_attention,
    examples=_examples,
    plugin=True,
    damage=_damage,
)

OPS = (CACHED_ATTENTION,)
