"""Nearest entries: the search that everything else calls, in blocks that stay in cache.

Under a metric A = L Lᵀ the entry nearest to x maximizes (x L)·(c L) - |c L|²/2: one matrix product and one argmax.
"""

__all__ = ["nearest", "nearest_sum"]

from collections.abc import Iterator

import numpy as np

#: Scores computed at a time: 256 KB of float32.
_SCORES = 1 << 16


def nearest(x: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the entry nearest to each vector, the lowest of equally near ones.

    Args:
        x: (M, v) float32.
        entries: (E, v) float32.

    Returns:
        (M,) int64.
    """
    table = _score_table(entries)
    return np.concatenate([s.argmax(axis=1) for s in _scores(x, table)]) if len(x) else np.zeros(0, np.int64)


def nearest_sum(x: np.ndarray, books: np.ndarray, beam: int) -> np.ndarray:
    """Return r entries, one of each codebook, whose sum is near to each vector.

    The ``beam`` nearest entries of the first codebook are each continued with the nearest one to what is left in the
    next, and so on; the best of these sums wins. With one codebook it is the nearest entry.

    Args:
        x: (M, v) float32.
        books: (r, E, v) float32.
        beam: at least 1.

    Returns:
        (M, r) int64.
    """
    if len(books) == 1:
        return nearest(x, books[0])[:, None]
    beam = min(beam, books.shape[1])
    first = _nearest_few(x, books[0], beam)
    left = x[:, None] - books[0][first]
    codes = [first]
    for entries in books[1:]:
        code = nearest(left.reshape(-1, x.shape[1]), entries).reshape(len(x), beam)
        left -= entries[code]
        codes.append(code)
    best = np.einsum("mbv,mbv->mb", left, left).argmin(axis=1)
    rows = np.arange(len(x))
    return np.stack([c[rows, best] for c in codes], axis=1)


def _nearest_few(x: np.ndarray, entries: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` nearest entries to each vector, (M, count), nearest first."""
    table = _score_table(entries)
    found = []
    for scores in _scores(x, table):
        rows, picks = np.arange(len(scores)), []
        for _ in range(count):
            picks.append(scores.argmax(axis=1))
            scores[rows, picks[-1]] = -np.inf
        found.append(np.stack(picks, axis=1))
    return np.concatenate(found) if found else np.zeros((0, count), np.int64)


def _score_table(entries: np.ndarray) -> np.ndarray:
    """Return (v + 1, E): entries as columns, and below them minus half of their squares."""
    half = np.float32(-0.5) * np.einsum("ev,ev->e", entries, entries)
    return np.concatenate([entries.T, half[None]]).astype(np.float32)


def _scores(x: np.ndarray, table: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the scores of some of the vectors after the other, (some, E)."""
    with_one = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
    step = max(16, _SCORES // table.shape[1])
    return (with_one[start : start + step] @ table for start in range(0, len(x), step))
