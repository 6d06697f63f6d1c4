"""Weights to 4-bit codes of the types that their groups have chosen: to nearest, or second-order.

Rounding is to the nearest value of the group's grid, at a tie to the smaller magnitude. GPTQ (Frantar et al., 2023,
algorithm 1) on such a grid is the same as on an even one: columns are rounded in the order of falling second moment,
and those that are left make up for the error.
"""

__all__ = ["Codec", "flattened", "gptq", "grouped"]

import numpy as np

from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mant.search import Choice
from graphopt.passes.mant.types import CODES, TypeTable

_SIGN = CODES // 2


def grouped(w: np.ndarray, group: int) -> np.ndarray:
    """Return ``w`` (N, K) as (N, ceil(K / group), group), padded with zeros."""
    n, k = w.shape
    count = -(-k // group)
    padded = w if count * group == k else np.pad(w, ((0, 0), (0, count * group - k)))
    return padded.reshape(n, count, group)


def flattened(w: np.ndarray, columns: int) -> np.ndarray:
    """Return the first ``columns`` columns of ``w`` (N, G, g): the inverse of `grouped`."""
    return w.reshape(len(w), -1)[:, :columns]


class Codec:
    """Encodes and decodes some rows of a weight under a `Choice`.

    Args:
        table: what the codes stand for.
        choice: of the rows.
    """

    def __init__(self, table: TypeTable, choice: Choice) -> None:
        self._table, self._choice = table, choice
        self._made: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def encode(self, w: np.ndarray) -> np.ndarray:
        """Return (N, G, g) uint8 codes of the values nearest to ``w`` (N, G, g) float32."""
        choice = self._choice
        return self._encode(w, choice.ids[:, :, None], self._bounds(choice.ids, choice.scales)[..., None, :])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return (N, G, g) float32: what ``codes`` (N, G, g) stand for."""
        index = codes + self._choice.ids[:, :, None] * np.intp(CODES)
        return np.asarray(np.take(self._table.values.reshape(-1), index) * self._choice.scales[:, :, None])

    def column(self, group: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return codes (N,) uint8 of one column ``w`` (N,) float32 of a group, and the values that they stand for."""
        ids, scales, bounds = self._of_group(group)
        codes = self._encode(w, ids, bounds)
        return codes, np.take(self._table.values.reshape(-1), codes + ids * np.intp(CODES)) * scales

    def _of_group(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and scales (N,), and bounds (N, 7 or 15) of a group, made once."""
        if group not in self._made:
            ids, scales = (np.ascontiguousarray(a[:, group]) for a in (self._choice.ids, self._choice.scales))
            # Each bound lies together in memory: it is compared with a whole column.
            self._made[group] = ids, scales, np.ascontiguousarray(self._bounds(ids, scales).T).T
        return self._made[group]

    def _bounds(self, ids: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Return (..., 7 or 15): what values are compared with, their magnitudes where the signs do not differ."""
        return self._table.boundaries[ids, _SIGN if self._table.symmetric else 0 :] * scales[..., None]

    def _encode(self, w: np.ndarray, ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Return codes uint8 of ``w``; ``ids`` and each of ``bounds`` (..., 7 or 15) are broadcastable to it."""
        symmetric = self._table.symmetric
        compared = np.abs(w) if symmetric else w
        place = np.zeros(w.shape, np.uint8)
        for j in range(bounds.shape[-1]):
            place += compared > bounds[..., j]
        if symmetric:
            return place | (np.signbit(w).view(np.uint8) << np.uint8(3))
        return self._table.ascending[ids, place].astype(np.uint8)


def gptq(w: np.ndarray, codec: Codec, group: int, moment: SecondMoment) -> tuple[np.ndarray, np.ndarray]:
    """Return codes whose output error is small, and that error, which in no row is larger than that of the nearest.

    Args:
        w: (N, K) float32.
        codec: for the groups of w.
        group: columns of a group.
        moment: of the input, all channels.

    Returns:
        codes (N, K) uint8, and (N,) float64 as `SecondMoment.squared_error` gives it.
    """
    codes = np.zeros(w.shape, np.uint8)

    def rounded(k: int, column: np.ndarray) -> np.ndarray:
        channel = int(moment.order[k])
        codes[:, channel], values = codec.column(channel // group, column)
        return values

    moment.round_columns(w, rounded)
    k = w.shape[1]
    simple = flattened(codec.encode(grouped(w, group)), k)
    error, simple_error = (
        moment.squared_error(w - flattened(codec.decode(grouped(c, group)), k)) for c in (codes, simple)
    )
    better = error < simple_error
    return np.where(better[:, None], codes, simple), np.where(better, error, simple_error)
