"""MANTCachedAttention: rotary, real-time 4-bit append and attention over a M-ANT cache, in one op."""

__all__ = ["CACHED_ATTENTION", "OPS"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.passes.mant.cache_body import write
from graphopt.passes.mant.cache_codes import SELECTORS
from graphopt.passes.mant.cache_numerics import State, mant_cached_attention, update

_K_META = "(B, Hkv, C, 2 D / group) int8: a little-endian word of each token and group of channels: a float16 scale "
_STATE = (
    (
        "k",
        "(B, Hkv, C, D / 2) int8: a row for each token, codes of its rotated and centered key, two to a byte along D",
    ),
    ("k_meta", f"{_K_META}whose last four bits are the type id"),
    ("v", "(B, Hkv, C, D / 2) int8: a page of ``group`` rows for as many tokens, (D, group / 2): codes along tokens"),
    ("v_meta", "(B, Hkv, C, 2 D / group) int8: a page of ``group`` rows is (D, 2): a word of each channel"),
    ("v_window", "(B, Hkv, group, D) int8: token t of the open page in row t mod group"),
    ("v_scale", "(B, Hkv, group) float16: scale of each token of the window"),
    ("sink", "(B, Hkv, 2, D) T: rotated key and value of token 0, exact"),
)


def _examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    """Three sequences of 37 new tokens: one completes a page, one is new, and of one two tokens do not fit."""
    batch, seq, heads, kv_heads, size, capacity, group = 3, 37, 6, 2, 64, 128, 32
    q, k, v = (rng.standard_normal((batch, seq, n, size)) for n in (heads, kv_heads, kv_heads))
    q[..., 3] *= 5
    k[..., 9] *= 8
    angles = np.tile(rng.uniform(-3, 3, (batch, seq, size // 2)), 2)
    start = np.array([50, 0, capacity - seq + 2], np.int32)
    past = State.empty(batch, kv_heads, capacity, size, group, dtype)
    older = [(rng.standard_normal((batch, capacity, kv_heads, size)) * 2).astype(dtype) for _ in range(2)]
    for b, count in enumerate(start):
        one = State(*(a[b : b + 1] for a in past.arrays()))
        keys, values = (x[b : b + 1, :count] for x in older)
        one = update(one, keys, values, np.zeros(1, np.int32), SELECTORS[0])
        for whole, part in zip(past.arrays(), one.arrays(), strict=True):
            whole[b] = part[0]
    past.k_meta[1, :, 40:] = past.v_meta[1, :, 40:] = -1  # words of NaN where nothing was written
    given = (x.astype(dtype) for x in (q, k, v, np.cos(angles), np.sin(angles)))
    center = rng.standard_normal((kv_heads, size)).astype(dtype)
    return (*given, center, *past.arrays(), start)


CACHED_ATTENTION = OpSpec(
    name="MANTCachedAttention",
    family="CachedAttention",
    doc="CachedAttention over a cache of 4-bit M-ANT groups, quantized in real time: present = past with k' = "
    "rotary(k) - k_center and v of the tokens start[b] .. start[b] + S - 1, those from C on dropped. Keys become 4-bit "
    "at once, in groups of channels; values are int8 in a window until a page of tokens is complete, then 4-bit in "
    "groups of its tokens; token 0 is kept exact beside them. y[b, i] = T(softmax over j <= start[b] + i of scale * "
    "rotary(q)[b, i] . K[b, j], times V), where K and V are what present stands for, softmax and sums in float32 "
    "(M-ANT, HPCA'25, section 5.2; numerics and layout in passes/mant/cache_numerics.py and cache_codes.py).",
    inputs=(
        Param("q", "(B, S, Hq, D) T"),
        Param("k", "(B, S, Hkv, D) T; Hq is a multiple of Hkv, D of 32 and of group"),
        Param("v", "(B, S, Hkv, D) T"),
        Param("cos", "(1 or B, S, D) T; (1, 1, D), not read, if not rotary"),
        Param("sin", "as cos"),
        Param("k_center", "(Hkv, D) T: subtracted from rotated keys; changes no softmax"),
        *(Param(f"past_{name}", doc) for name, doc in _STATE),
        Param("start", "(B,) int32: tokens that each sequence has already; below 0 counts as 0"),
    ),
    outputs=(
        Param("y", "(B, S, Hq, D) T"),
        *(Param(f"present_{name}", f"as past_{name}, and may be its memory") for name, _ in _STATE),
    ),
    attributes=(
        Attribute("scale", 1.0, "factor on q . k"),
        Attribute("rotary", 1, "1: q and k are rotated by halves; 0: they are taken as they are"),
        Attribute(
            "selector", 0, "how a group gets its type: " + ", ".join(f"{i} {n}" for i, n in enumerate(SELECTORS))
        ),
    ),
    body=write,
    evaluate=lambda *inputs, scale=1.0, rotary=1, selector=0: mant_cached_attention(
        *inputs, scale=scale, rotary=rotary, selector=selector
    ),
    examples=_examples,
    plugin=True,
)

OPS: tuple[OpSpec, ...] = (CACHED_ATTENTION,)
