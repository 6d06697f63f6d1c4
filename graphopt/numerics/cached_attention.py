"""Attention over a key-value cache of fixed capacity, in numpy: float32 inside, one rounding of q', k' and y to T."""

__all__ = ["append", "attend", "cached_attention"]

import numpy as np

from graphopt.numerics import layers


def append(past: np.ndarray, new: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return ``past`` with the rows ``start[b]``, ``start[b] + 1``, ... of sequence b replaced by ``new``.

    Args:
        past: (B, Hkv, C, D), any type; C rows of each sequence and head.
        new: (B, S, Hkv, D), the same type.
        start: (B,) integers; below 0 counts as 0. Rows that would fall at C or beyond are dropped.
    """
    present, capacity = past.copy(), past.shape[2]
    for b, first in enumerate(np.maximum(start, 0)):
        kept = new[b, : max(0, capacity - int(first))].swapaxes(0, 1)
        present[b, :, first : first + kept.shape[1]] = kept
    return present


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray, scale: float) -> np.ndarray:
    """Return T(softmax over j <= start[b] + i of scale · q[b, i] · k[b, h, j], times v) (Vaswani et al., 2017, eq. 1).

    Args:
        q: (B, S, Hq, D) T; query head h reads key/value head h // (Hq / Hkv).
        k, v: (B, Hkv, C, D); rows from start[b] + S on are not read.
        start: (B,) integers; below 0 counts as 0.
        scale: factor on q · k.

    Returns:
        (B, S, Hq, D) T.
    """
    seq, capacity, group = q.shape[1], k.shape[2], q.shape[2] // k.shape[1]
    query = np.maximum(start, 0).astype(np.int64)[:, None] + np.arange(seq)  # (B, S)
    length = np.maximum(start, 0).astype(np.int64) + seq
    seen = np.arange(capacity) <= query[..., None]  # (B, S, C)
    written = (np.arange(capacity) < length[:, None])[:, None, :, None]
    with np.errstate(invalid="ignore", over="ignore"):
        keys = np.repeat(k, group, axis=1).astype(np.float32)
        values = np.repeat(np.where(written, v, np.zeros((), v.dtype)), group, axis=1).astype(np.float32)
        scores = q.swapaxes(1, 2).astype(np.float32) @ keys.swapaxes(-1, -2) * np.float32(scale)
        scores = np.where(seen[:, None], scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.ascontiguousarray((weights @ values).swapaxes(1, 2).astype(q.dtype))


def cached_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    past_k: np.ndarray,
    past_v: np.ndarray,
    start: np.ndarray,
    *,
    scale: float,
    rotary: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y, present_k, present_v; shapes as in graphopt.passes.kvcache.ops."""
    if rotary:
        q, k = (layers.rotary(x, cos[:, :, None], sin[:, :, None]) for x in (q, k))
    present_k, present_v = append(past_k, k, start), append(past_v, v, start)
    return attend(q, present_k, present_v, start, scale), present_k, present_v
