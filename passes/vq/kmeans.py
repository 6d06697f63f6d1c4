"""Weighted k-means in the metric of the output error.

Vectors x[p, n] (position p, row n) are coded with entries c so that

    Σ_p Σ_n w_n (x[p, n] - c) A_p (x[p, n] - c)ᵀ,      A_p = L_p L_pᵀ

falls: each x goes to its nearest entry, each entry to the minimum over its vectors, (Σ w A)⁻¹ Σ w A x.
"""

__all__ = ["kmeans"]

import numpy as np

from graphopt.passes.vq.search import nearest

#: Partial sums held at a time.
_SUMS = 1 << 20


def kmeans(
    x: np.ndarray, metric: np.ndarray, weight: np.ndarray, entries: int, iterations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Train a codebook.

    Args:
        x: (P, R, v) float32.
        metric: (P, v, v) float32, the factors L.
        weight: (P, R) float32, not negative.
        entries: E.
        iterations: how often entries move.
        rng: picks the first entries.

    Returns:
        entries (E, v) float32, and codes (P, R) int64 of the nearest entry to each vector.
    """
    turned = x @ metric
    error = np.einsum("prv,prv->pr", turned, turned) * weight
    flat = x.reshape(-1, x.shape[-1])
    # Large vectors more often, so that rare ones get entries of their own.
    odds = np.sqrt(error.reshape(-1).astype(np.float64))
    present = np.flatnonzero(odds > 0)
    if len(present) <= entries:
        book = np.concatenate([flat[present], np.zeros((entries - len(present), x.shape[-1]), np.float32)])
        return book, _assign(turned, metric, book)
    book = flat[np.sort(rng.choice(len(flat), entries, replace=False, p=odds / odds.sum()))]
    codes = _assign(turned, metric, book)
    for _ in range(iterations):
        book = _moved(x, metric, weight, codes, book, turned)
        codes = _assign(turned, metric, book)
    return book, codes


def _assign(turned: np.ndarray, metric: np.ndarray, book: np.ndarray) -> np.ndarray:
    return np.stack([nearest(x, book @ factor) for x, factor in zip(turned, metric, strict=True)])


def _moved(
    x: np.ndarray, metric: np.ndarray, weight: np.ndarray, codes: np.ndarray, book: np.ndarray, turned: np.ndarray
) -> np.ndarray:
    """Return the entries moved to the minimum over their vectors; unused ones go to where the error is largest."""
    v, entries = x.shape[-1], len(book)
    heavy = weight.reshape(-1)
    left, right = np.zeros((entries, v * v)), np.zeros((entries, v))
    step = max(1, _SUMS // (entries * v))
    for start in range(0, len(x), step):
        at = slice(start, start + step)
        mass, first = _sums(x[at], weight[at], codes[at], entries)
        a = (metric[at] @ metric[at].transpose(0, 2, 1)).astype(np.float64)
        left += mass.T @ a.reshape(-1, v * v)
        right += np.einsum("pce,pef->cf", first, a, optimize=True)
    left = left.reshape(entries, v, v)
    ridge = 1e-7 * np.trace(left, axis1=1, axis2=2)
    used = ridge > 0
    left[:, range(v), range(v)] += np.where(used, ridge, 1.0)[:, None]
    moved = np.where(used[:, None], np.linalg.solve(left, right[..., None])[..., 0], book).astype(np.float32)
    free = np.flatnonzero(~used)
    if len(free):
        apart = turned - np.take_along_axis(book @ metric, codes[..., None], axis=1)
        error = np.einsum("prv,prv->pr", apart, apart).reshape(-1) * heavy
        worst = np.argsort(-error, kind="stable")[: len(free)]
        moved[free[: len(worst)]] = x.reshape(-1, v)[worst]
    return moved


def _sums(x: np.ndarray, weight: np.ndarray, codes: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ w and Σ w x over the vectors of each position and entry: (P, E) and (P, E, v) float64."""
    positions, _, v = x.shape
    key = (np.arange(positions)[:, None] * entries + codes).reshape(-1)
    size, heavy = positions * entries, weight.reshape(-1)
    mass = np.bincount(key, heavy, size).reshape(positions, entries)
    sums = [np.bincount(key, heavy * x[..., e].reshape(-1), size) for e in range(v)]
    return mass, np.stack(sums, axis=-1).reshape(positions, entries, v)
