"""Codes for a strip of a weight, given an encoder of single vectors: first with feedback, then by descent.

*Feedback* is GPTQ (Frantar et al., 2023) with vectors for columns, as in GPTVQ (van Baalen et al., 2024): vector after
vector is coded, and those that are left make up for its error. *Descent* goes over the vectors again: with all others
fixed, the best value of vector j is

    t_j = ŵ_j + ((w - ŵ) M)_j M_jj⁻¹

and the code nearest to t_j in the metric M_jj replaces the old one if that lowers the output error.
"""

__all__ = ["Encoder", "descent", "feedback"]

from typing import Protocol

import numpy as np

from graphopt.passes.vq.moments import Moment, VectorMoment

#: Columns that are coded before the update of the columns outside of them.
_BLOCK = 64


class Encoder(Protocol):
    """Codes vectors of one position."""

    def encode(self, position: int, x: np.ndarray, metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return codes (R, r) and their values (R, v) float32, near to ``x`` (R, v) under ``metric``.

        ``metric`` (v, v) is the factor L of A = L Lᵀ.
        """


def feedback(w: np.ndarray, moment: Moment, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Code a strip with error feedback.

    Args:
        w: (R, K') float32.
        moment: of the input.
        encoder: of vectors.

    Returns:
        codes (R, J, r) int64 and values (R, K') float32.
    """
    positions, v = moment.alone.shape[:2]
    u = moment.factor
    left = np.ascontiguousarray(w.T[moment.columns])
    values = np.empty_like(w)
    codes: list[np.ndarray] = [np.empty(0)] * positions
    step = max(v, _BLOCK // v * v)
    for start in range(0, len(left), step):
        stop = min(start + step, len(left))
        errors = np.empty((stop - start, len(w)), np.float32)
        for at in range(start, stop, v):
            j = int(moment.order[at // v])
            x = np.ascontiguousarray(left[at : at + v].T)
            codes[j], value = encoder.encode(j, x, moment.feedback[j])
            values[:, j * v : (j + 1) * v] = value
            error = ((x - value) @ moment.feedback[j]).T
            errors[at - start : at - start + v] = error
            if u is not None:
                left[at + v : stop] -= u[at : at + v, at + v : stop].T @ error
        if u is not None:
            left[stop:] -= u[start:stop, stop:].T @ errors
    return np.stack(codes, axis=1), values


def descent(
    w: np.ndarray, codes: np.ndarray, values: np.ndarray, moment: VectorMoment, encoder: Encoder
) -> tuple[np.ndarray, np.ndarray]:
    """Code every vector of a strip again, with all others fixed.

    Args:
        w: (R, K') float32.
        codes, values: of `feedback` or an earlier descent; not changed.
        moment: of the input.
        encoder: of vectors.

    Returns:
        codes and values as `feedback` returns them. The output error of no row is larger than before.
    """
    v = moment.alone.shape[1]
    m = moment.damped
    codes, values = codes.copy(), values.copy()
    slope = m @ (w - values).T
    step = max(v, _BLOCK // v * v)
    for start in range(0, len(slope), step):
        stop = min(start + step, len(slope))
        moves = np.zeros((stop - start, len(w)), np.float32)
        for at in range(start, stop, v):
            j = at // v
            here = slice(at, at + v)
            gap = slope[here].T @ moment.inverse[j]
            x = values[:, here] + gap
            code, value = encoder.encode(j, x, moment.alone[j])
            metric = moment.alone[j]
            better = _squares((x - value) @ metric) < _squares(gap @ metric)
            value = np.where(better[:, None], value, values[:, here])
            codes[:, j] = np.where(better[:, None], code, codes[:, j])
            move = (value - values[:, here]).T
            values[:, here] = value
            moves[at - start : at - start + v] = move
            slope[at:stop] -= m[at:stop, here] @ move
        slope[stop:] -= m[stop:, start:stop] @ moves
    return codes, values


def _squares(x: np.ndarray) -> np.ndarray:
    return np.einsum("rv,rv->r", x, x)
