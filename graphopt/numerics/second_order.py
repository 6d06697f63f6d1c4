"""Second-order rounding: the factor that says how the columns that are left make up for the error of rounded ones.

GPTQ (Frantar et al., 2023) rounds the columns of a weight one after the other against M = mean XᵀX of its input. With
M⁻¹ = Uᵀ U, U upper triangular, an error e = w_k - ŵ_k of column k is best compensated by w_j -= U[k, j] e / U[k, k] in
the columns j after it, and then costs (e / U[k, k])² of mean squared output. The same holds for a group of columns b,
with e U[b, b]⁻¹ in place of e / U[k, k].
"""

__all__ = ["SecondMoment", "inverse_factor"]

from collections.abc import Callable

import numpy as np

from graphopt.errors import CalibrationError

#: Size from which on triangles are inverted by halves; columns that are rounded before distant ones are updated.
_BLOCK = 64


class SecondMoment:
    """M of a linear's input, prepared for GPTQ; linears that read the same input share it.

    Args:
        moment: (K, K) float32, mean over tokens of XᵀX.
        inner: (K,) bool, False in channels that take no part (outliers).
        damping: share of the mean of M's diagonal that is added to it.

    Attributes:
        order: the inner channels by falling second moment, the order in which they are rounded.
        factor: U of the inner channels in that order, float32, upper triangular.

    Raises:
        CalibrationError: ``moment`` is no second moment: it is not positive semi-definite.
    """

    def __init__(self, moment: np.ndarray, inner: np.ndarray, damping: float) -> None:
        self._moment = moment
        diagonal = np.diagonal(moment)
        channels = np.flatnonzero(inner)
        self.order = channels[np.argsort(-diagonal[channels], kind="stable")]
        self.factor = inverse_factor(moment, self.order, damping)

    def squared_error(self, difference: np.ndarray) -> np.ndarray:
        """Return d M dᵀ of every row d of ``difference`` (N, K) as (N,) float64: the mean squared output error."""
        return np.einsum("nk,nk->n", difference @ self._moment, difference, dtype=np.float64)

    def round_columns(self, w: np.ndarray, rounded: Callable[[int, np.ndarray], np.ndarray]) -> None:
        """Hand the columns of ``w`` (N, K) float32, as the errors of those before have changed them, to ``rounded``.

        Args:
            w: not changed; the inner channels are visited in `order`.
            rounded: takes the position of a column in `order` and its values (N,), returns what they are rounded to.
        """
        left, u = np.ascontiguousarray(w.T[self.order]), self.factor
        for start in range(0, len(left), _BLOCK):
            stop = min(start + _BLOCK, len(left))
            errors = np.empty((stop - start, len(w)), np.float32)
            for k in range(start, stop):
                errors[k - start] = (left[k] - rounded(k, left[k])) / u[k, k]
                left[k + 1 : stop] -= u[k, k + 1 : stop, None] * errors[k - start]
            left[stop:] -= u[start:stop, stop:].T @ errors


def inverse_factor(moment: np.ndarray, order: np.ndarray, damping: float) -> np.ndarray:
    """Return U of the damped second moment of some channels.

    Args:
        moment: (K, K) float32, mean over tokens of XᵀX.
        order: (C,) channels, in the order in which they are rounded.
        damping: share of the mean of the diagonal that is added to it.

    Returns:
        (C, C) float32, upper triangular.

    Raises:
        CalibrationError: ``moment`` is no second moment: it is not positive semi-definite.
    """
    # With the order reversed, the Cholesky factor of M and the inverse of that factor are what U is made of.
    backwards = order[::-1]
    m = moment[np.ix_(backwards, backwards)].astype(np.float64)
    added = damping * float(np.trace(m)) / max(1, len(m))
    m[np.diag_indices_from(m)] += added if added > 0 else 1.0
    try:
        lower = np.linalg.cholesky(m)
    except np.linalg.LinAlgError:
        raise CalibrationError(
            "a second moment in the statistics is not positive semi-definite; make them again with 'graphopt "
            "calibrate --second-moment'"
        ) from None
    del m  # as large as all that follows
    _invert_lower(lower)
    return np.triu(lower[::-1, ::-1]).astype(np.float32)


def _invert_lower(a: np.ndarray) -> None:
    """Invert a lower triangular matrix in place, by halves: a sixth of the work of a general inverse."""
    if len(a) <= _BLOCK:
        a[...] = np.linalg.inv(a)
        return
    half = len(a) // 2
    _invert_lower(a[:half, :half])
    _invert_lower(a[half:, half:])
    a[half:, :half] = -a[half:, half:] @ a[half:, :half] @ a[:half, :half]
