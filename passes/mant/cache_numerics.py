"""Attention over a 4-bit key-value cache that is quantized in real time (M-ANT, HPCA'25, section 5.2), in numpy.

Keys, after rotary, are quantized as they come: groups of g channels of one token and head. A constant of each channel,
the mean of calibrated keys, is subtracted first: keys have channels that are large for every token, and a constant adds
the same to all scores of a query, which softmax does not see. Values are quantized in
two phases, in groups of g consecutive tokens of one channel: a window holds the last tokens as int8, and when the g
tokens of a page (tokens p·g to p·g + g - 1) are complete, the page becomes 4-bit with the statistics of all of them.

The window keeps one float16 scale for each token and head. (The paper keeps one per channel, fixed by the prompt, which
later tokens may exceed.) With it the state depends on the tokens alone and not on how they were split into calls.

Token 0 is read from the sink and not from its codes: it is unlike all others and gets most of the attention of many
heads (Xiao et al., 2023), so that its errors are those of whole layers.

    state                shape and type               contents, for B sequences, Hkv heads, capacity C, D channels
    k, k_meta            (B, Hkv, C, D/2), (B, Hkv, C, 2 D/g) int8
                                                      a row per token: codes along D, and a word of each group
    v, v_meta            the same sizes, int8         a page of g rows for g tokens: (D, g/2), codes along tokens, and
                                                      (D, 2), a word of each channel
    v_window             (B, Hkv, g, D) int8          token t in row t mod g
    v_scale              (B, Hkv, g) float16          its scale
    sink                 (B, Hkv, 2, D) T             key, not centered, and value of token 0, exact

Codes are packed two to a byte in the order of `graphopt.numerics.packing`; words (cache_codes.py) are little endian.
What lies behind the last token, in pages that are not complete and in rows of the window that no token of the open page
has, is never read. A sequence starts again with start = 0.
"""

__all__ = ["State", "dequantize", "mant_cached_attention", "update"]

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.numerics import cached_attention, layers
from graphopt.numerics.packing import pack_int4, unpack_int4
from graphopt.passes.mant.cache_codes import SELECTORS, decode, encode, words_to_bytes


@dataclass(frozen=True)
class State:
    """The cache of one layer; arrays as in the module's table."""

    k: np.ndarray
    k_meta: np.ndarray
    v: np.ndarray
    v_meta: np.ndarray
    v_window: np.ndarray
    v_scale: np.ndarray
    sink: np.ndarray

    @classmethod
    def empty(cls, batch: int, heads: int, capacity: int, size: int, group: int, dtype: Any = np.float32) -> "State":
        """Return a cache without tokens."""
        rows, meta = (batch, heads, capacity, size // 2), (batch, heads, capacity, 2 * size // group)
        window, sink = (batch, heads, group, size), (batch, heads, 2, size)
        codes = (np.zeros(shape, np.int8) for shape in (rows, meta, rows, meta, window))
        return cls(*(*codes, np.zeros(window[:3], np.float16), np.zeros(sink, dtype)))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return the arrays in the order of the fields."""
        return self.k, self.k_meta, self.v, self.v_meta, self.v_window, self.v_scale, self.sink

    @property
    def group(self) -> int:
        """g."""
        return int(self.v_window.shape[2])


def quantize_values(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 codes and float16 scales (...,) of values (..., D): max|v| / 127 for each token and head."""
    x = v.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        amax = np.abs(x).max(axis=-1) + (x * np.float32(0)).sum(axis=-1)
        scale = (amax / np.float32(127)).astype(np.float16)
        codes = np.rint(x / scale.astype(np.float32)[..., None])
    return np.clip(np.nan_to_num(codes, nan=0, posinf=127, neginf=-127), -127, 127).astype(np.int8), scale


def update(
    past: State, k: np.ndarray, v: np.ndarray, start: np.ndarray, selector: str, k_center: np.ndarray | None = None
) -> State:
    """Return the cache with new tokens.

    Args:
        past: not changed.
        k: (B, S, Hkv, D) T, rotated.
        v: (B, S, Hkv, D).
        start: (B,) tokens that each sequence has; below 0 counts as 0. Tokens from C on are dropped.
        selector: one of `cache_codes.SELECTORS`.
        k_center: (Hkv, D), subtracted from keys; None for 0.
    """
    centered = k.astype(np.float32) - (np.float32(0) if k_center is None else k_center.astype(np.float32))
    codes, words = encode(_grouped(centered, past.group), selector)
    flat = (
        pack_int4(codes.reshape(k.shape).view(np.int8)),
        words_to_bytes(words).reshape(*k.shape[:3], past.k_meta.shape[3]),
    )
    rows = [cached_attention.append(a, new, start) for a, new in zip((past.k, past.k_meta), flat, strict=True)]
    values = [a.copy() for a in (past.v, past.v_meta, past.v_window, past.v_scale)]
    new_codes, new_scale = quantize_values(v)
    for b, first in enumerate(np.maximum(start, 0)):
        _append_values([a[b] for a in values], new_codes[b], new_scale[b], int(first), selector)
    sink = past.sink.copy()
    fresh = start <= 0
    if k.shape[1]:
        sink[fresh] = np.stack([k[fresh, 0], v[fresh, 0]], axis=2)
    return State(*(*rows, *values, sink))


def _append_values(state: list[np.ndarray], codes: np.ndarray, scale: np.ndarray, start: int, selector: str) -> None:
    """Append tokens (S, Hkv, D) to the values of one sequence, in place: v, v_meta, v_window, v_scale."""
    v, v_meta, window, window_scale = state
    group, heads, size = window.shape[1], window.shape[0], window.shape[2]
    pages, words = v.reshape(heads, -1, size, group // 2), v_meta.reshape(heads, -1, size, 2)
    for i in range(min(len(codes), v.shape[1] - start)):
        row = (start + i) % group
        window[:, row], window_scale[:, row] = codes[i], scale[i]
        if row == group - 1:
            with np.errstate(invalid="ignore"):
                exact = window * window_scale.astype(np.float32)[..., None]
            page_codes, page_words = encode(np.ascontiguousarray(exact.swapaxes(1, 2)), selector)
            page = (start + i) // group
            pages[:, page], words[:, page] = pack_int4(page_codes.view(np.int8)), words_to_bytes(page_words)


def dequantize(state: State, length: np.ndarray, k_center: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return K, centered, and V (B, Hkv, C, D) float32 of sequences of ``length`` (B,) tokens.

    Rows behind them mean nothing.
    """
    batch, heads, capacity, half = state.k.shape
    size, group = 2 * half, state.group
    codes = unpack_int4(state.k, size).view(np.uint8) & np.uint8(15)
    k = decode(_grouped(codes, group), _words(state.k_meta, size // group)).reshape(batch, heads, capacity, size)
    pages = (batch, heads, capacity // group, size)
    codes = unpack_int4(state.v.reshape(*pages, group // 2), group).view(np.uint8) & np.uint8(15)
    paged = decode(codes, _words(state.v_meta.reshape(*pages[:3], 2 * size), size)).swapaxes(-1, -2)
    with np.errstate(invalid="ignore"):
        window = state.v_window * state.v_scale.astype(np.float32)[..., None]
    token = np.arange(capacity)
    is_open = token >= (np.minimum(length, capacity) // group * group)[:, None]
    v = np.where(is_open[:, None, :, None], window[:, :, token % group], paged.reshape(batch, heads, capacity, size))
    sink = state.sink.astype(np.float32)
    k[:, :, 0] = sink[:, :, 0] - (np.float32(0) if k_center is None else k_center.astype(np.float32))
    v[:, :, 0] = sink[:, :, 1]
    return k, v


def mant_cached_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    k_center: np.ndarray,
    *rest: np.ndarray,
    scale: float,
    rotary: int,
    selector: int,
) -> tuple[np.ndarray, ...]:
    """Return y and the arrays of the present state; arguments as in cache_ops.py."""
    *arrays, start = rest
    if rotary:
        q, k = (layers.rotary(x, cos[:, :, None], sin[:, :, None]) for x in (q, k))
    present = update(State(*arrays), k, v, start, SELECTORS[selector], k_center)
    keys, values = dequantize(present, np.maximum(start, 0) + q.shape[1], k_center)
    return cached_attention.attend(q, keys, values, start, scale), *present.arrays()


def _grouped(x: np.ndarray, group: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], x.shape[-1] // group, group)


def _words(meta: np.ndarray, count: int) -> np.ndarray:
    """Return (..., count) uint16 of little-endian ``meta`` (..., 2 count) int8."""
    pairs = meta.view(np.uint8).reshape(*meta.shape[:-1], count, 2).astype(np.uint16)
    return np.asarray(pairs[..., 0] | (pairs[..., 1] << np.uint16(8)))
