"""Second-order rounding: the factor that says how the columns that are left make up for the error of rounded ones.

GPTQ (Frantar et al., 2023) rounds the columns of a weight one after the other against M = mean XᵀX of its input. With
M⁻¹ = Uᵀ U, U upper triangular, an error e = w_k - ŵ_k of column k is best compensated by w_j -= U[k, j] e / U[k, k] in
the columns j after it, and then costs (e / U[k, k])² of mean squared output. The same holds for a group of columns b,
with e U[b, b]⁻¹ in place of e / U[k, k].
"""

__all__ = ["inverse_factor"]

import numpy as np

from graphopt.errors import CalibrationError

#: Size from which on triangles are inverted by halves.
_BLOCK = 64


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
    return np.triu(_inverse_of_lower(lower)[::-1, ::-1]).astype(np.float32)


def _inverse_of_lower(a: np.ndarray) -> np.ndarray:
    """Return the inverse of a lower triangular matrix by halves: a sixth of the work of a general inverse."""
    if len(a) <= _BLOCK:
        return np.linalg.inv(a)
    half = len(a) // 2
    result = np.zeros_like(a)
    result[:half, :half] = _inverse_of_lower(a[:half, :half])
    result[half:, half:] = _inverse_of_lower(a[half:, half:])
    result[half:, :half] = -result[half:, half:] @ a[half:, :half] @ result[:half, :half]
    return result
