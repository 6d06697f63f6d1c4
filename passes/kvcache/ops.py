"""CachedAttention: rotary, append to a cache of fixed capacity, and attention over it, in one op.

The cache is what an exported decoder concatenates, kept at one address: past and present have the same shape, and where
a runtime gives them the same memory, the kernel writes the new rows and copies nothing.
"""

__all__ = ["CACHED_ATTENTION", "OPS"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.cached_body import appended, attend, first_rows, rotated, rows_of_present
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics import cached_attention as numerics


def _body(b: BodyBuilder) -> None:
    start = first_rows(b)
    q, k = rotated(b, "q", "q"), rotated(b, "k", "k")
    rows = rows_of_present(b, start)
    keys = appended(b, "past_k", k, rows, "present_k")
    values = appended(b, "past_v", b.op("Transpose", "v", perm=[0, 2, 1, 3]), rows, "present_v")
    attend(b, q, b.cast(keys), b.cast(values), start)


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
