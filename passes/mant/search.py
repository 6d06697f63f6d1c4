"""Which type and which scale each group of a weight gets (M-ANT, HPCA'25, section 5.1).

A group's scale is its largest weight over the largest value of the type, times a share below 1 where clipping is
searched. Of all (type, share) the one with the least error wins:

    output:    E (x_g · (ŵ - w))² = dᵀ M_g d,    d = ŵ - w,  M_g = E x_gᵀ x_g  the group's block of the second moment
    diagonal:  Σ_k m_k d_k²,                     m_k = E x_k²
    weight:    Σ_k d_k²                          without calibration

A weight relative to its group's largest, u in [-1, 1], has the same error under a candidate wherever it is, so the
errors of all candidates come from one table over u, a few thousand rows long: one look-up per weight instead of
sixteen roundings. The output error is then computed in full for the few candidates that the diagonal ranks first.
"""

__all__ = ["CLIP_SHARES", "Choice", "choose"]

from dataclasses import dataclass

import numpy as np

from graphopt.passes.mant.types import TypeTable

#: Rows of the table over u. A row is 1/2048 wide; the smallest step of any type is 1/128.
_ROWS = 4096
#: Shares of the scale of the largest weight that a clip search tries. Seven, to 0.7, gain 0.1 % and take twice as long.
CLIP_SHARES = (1.0, 0.95, 0.9, 0.8)
#: Candidates whose output error is computed in full.
_SHORTLIST = 8


@dataclass(frozen=True)
class Choice:
    """Type and scale of every group of a weight (N, K) with G groups.

    Attributes:
        ids: (N, G) uint8 type ids.
        scales: (N, G) float32, exact in float16; 0 for a group of zeros.
    """

    ids: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class _Candidates:
    """All pairs of type and share, C of them.

    Attributes:
        ids: (C,) uint8.
        steps: (C,) float32, the scale of a group whose largest weight is 1.
        values: (rows, C) float32, nearest value to the row's u.
        errors: (rows, C) float32, its squared distance.
    """

    ids: np.ndarray
    steps: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, table: TypeTable, shares: tuple[float, ...]) -> "_Candidates":
        ids = np.repeat(np.array(table.ids, np.uint8), len(shares))
        steps = np.tile(np.array(shares, np.float32), len(table.ids)) / table.largest[ids]
        u = (np.arange(_ROWS, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / _ROWS) - np.float32(1)
        columns = []
        for type_id, step in zip(ids, steps, strict=True):
            place = np.searchsorted(table.boundaries[type_id] * step, u)
            columns.append(table.values[type_id][table.ascending[type_id][place]] * step)
        values = np.ascontiguousarray(np.stack(columns, axis=1))
        return cls(ids, steps, values, np.square(values - u[:, None]))


def choose(
    w: np.ndarray,
    table: TypeTable,
    *,
    clip: bool = False,
    importance: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
) -> Choice:
    """Return the best type and scale of every group.

    Args:
        w: (N, G, g) float32, finite, groups along the last axis.
        table: types to choose from.
        clip: whether to try scales below that of the largest weight.
        importance: (G, g) m_k; None for 1.
        blocks: (G, g, g) M_g; None to decide by ``importance``.
    """
    candidates = _Candidates.of(table, CLIP_SHARES if clip else (1.0,))
    n, groups, _ = w.shape
    amax = np.max(np.abs(w), axis=2)
    if len(candidates.ids) == 1:
        best = np.zeros((n, groups), np.intp)
    else:
        # The inverse of a denormal maximum overflows; no float16 scale reaches such weights.
        inverse = np.divide(1, amax, where=amax >= np.finfo(np.float32).tiny, out=np.zeros_like(amax))
        u = w * inverse[:, :, None]
        rows = np.minimum((u + np.float32(1)) * np.float32(_ROWS / 2), _ROWS - 1).astype(np.intp)
        errors = _ranking(candidates.errors, rows, importance)
        best = errors.argmin(axis=2) if blocks is None else _best_output(candidates, u, rows, errors, blocks)
    scales = (amax * candidates.steps[best]).astype(np.float16).astype(np.float32)
    return Choice(candidates.ids[best], scales)


def _ranking(errors: np.ndarray, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Return (N, G, C): the errors of every candidate, summed over each group."""
    of_weights = np.take(errors, rows, axis=0)
    if importance is None:
        return np.asarray(of_weights.sum(axis=2))
    return np.einsum("ngkc,gk->ngc", of_weights, importance.astype(np.float32), optimize=True)


def _best_output(
    candidates: _Candidates, u: np.ndarray, rows: np.ndarray, errors: np.ndarray, blocks: np.ndarray
) -> np.ndarray:
    """Return (N, G): the candidate of least output error among those that ``errors`` ranks first."""
    count = min(_SHORTLIST, errors.shape[2])
    listed = np.argsort(errors, axis=2, kind="stable")[:, :, :count]
    flat, columns = candidates.values.reshape(-1), len(candidates.ids)
    least, best = np.full(errors.shape[:2], np.inf, np.float32), listed[:, :, 0]
    for rank in range(count):
        candidate = listed[:, :, rank]
        d = (np.take(flat, rows * columns + candidate[:, :, None]) - u).swapaxes(0, 1)
        error = np.einsum("gnk,gnk->ng", d @ blocks, d)
        best, least = np.where(error < least, candidate, best), np.minimum(error, least)
    return best
