"""What a linear's input says about errors in its weight, by vectors of columns.

The mean squared output error of a row is d M dᵀ, d = w - ŵ and M = mean XᵀX. Of one vector j with everything else fixed
it is a square with metric M_jj; where the vectors after it will make up for its error, with the smaller metric
(U_jjᵀ U_jj)⁻¹ (graphopt.numerics.second_order). A metric A is kept as a factor L with A = L Lᵀ, so that the nearest
entry under A is the nearest in the plain sense after both sides are multiplied by L.
"""

__all__ = ["ChannelMoment", "Moment", "VectorMoment"]

import numpy as np

from graphopt.numerics.second_order import inverse_factor


class VectorMoment:
    """M of a linear's input, prepared for vectors of v columns; linears that read the same input share it.

    Args:
        moment: (K, K) float32, mean over tokens of XᵀX.
        vector: v; columns are padded with ones that never fire to a multiple of it.
        damping: share of the mean of M's diagonal that is added to it.

    Attributes:
        damped: (K', K') float32, M with damping and padding.
        order: (J,) vectors, in the order in which they are rounded: by falling second moment.
        columns: (K',) the columns in that order.
        factor: (K', K') U in the order of `columns`.
        feedback: (J, v, v) factors of the metric with compensation, by vector (not in order).
        alone: (J, v, v) factors of the metric without it.
        inverse: (J, v, v) inverses of M_jj.

    Raises:
        CalibrationError: ``moment`` is not positive semi-definite.
    """

    def __init__(self, moment: np.ndarray, vector: int, damping: float) -> None:
        v = vector
        damped = np.pad(moment, (0, -len(moment) % v)).astype(np.float32)
        count = len(damped) // v
        sizes = np.diagonal(damped).reshape(count, v).sum(axis=1)
        self.order = np.argsort(-sizes, kind="stable")
        self.columns = (self.order[:, None] * v + np.arange(v)).reshape(-1)
        self.factor = inverse_factor(damped, self.columns, damping)
        added = damping * float(np.trace(damped, dtype=np.float64)) / len(damped)
        damped[np.diag_indices_from(damped)] += added if added > 0 else 1.0
        self.damped = damped
        blocks = _diagonal_blocks(damped, v)
        self.alone = np.linalg.cholesky(blocks)
        self.inverse = np.linalg.inv(blocks)
        self.feedback = np.empty_like(blocks)
        self.feedback[self.order] = np.linalg.inv(_diagonal_blocks(self.factor, v))

    @property
    def diagonal(self) -> np.ndarray:
        """(K',) diagonal of `damped`."""
        return np.diagonal(self.damped)

    def apply(self, difference: np.ndarray) -> np.ndarray:
        """Return d M for every row d of ``difference`` (N, K')."""
        return difference @ self.damped

    def squared_error(self, difference: np.ndarray) -> np.ndarray:
        """Return d M dᵀ of every row d of ``difference`` (N, K') as (N,) float64."""
        return np.einsum("nk,nk->n", self.apply(difference), difference, dtype=np.float64)


class ChannelMoment:
    """The same for a diagonal M: the channels' mean squares, or ones where nothing is known of the input.

    Nothing can make up for an error then, so that `feedback` and `alone` are the same and there is no factor.

    Args:
        mean_square: (K,) mean squares of the input channels.
        vector: v.
        damping: share of their mean that is added to them.
    """

    factor: None = None

    def __init__(self, mean_square: np.ndarray, vector: int, damping: float) -> None:
        added = damping * float(mean_square.mean())
        diagonal = np.pad(mean_square, (0, -len(mean_square) % vector)) + (added if added > 0 else 1.0)
        self.diagonal = diagonal.astype(np.float32)
        self.order = np.arange(len(diagonal) // vector)
        self.columns = np.arange(len(diagonal))
        blocks = self.diagonal.reshape(-1, vector)[:, :, None] * np.eye(vector, dtype=np.float32)
        self.alone = self.feedback = np.sqrt(blocks)

    def apply(self, difference: np.ndarray) -> np.ndarray:
        """Return d M for every row d of ``difference`` (N, K')."""
        return difference * self.diagonal

    def squared_error(self, difference: np.ndarray) -> np.ndarray:
        """Return d M dᵀ of every row d of ``difference`` (N, K') as (N,) float64."""
        return np.einsum("nk,nk->n", self.apply(difference), difference, dtype=np.float64)


#: What is known of a linear's input.
Moment = VectorMoment | ChannelMoment


def _diagonal_blocks(matrix: np.ndarray, v: int) -> np.ndarray:
    """Return the (J, v, v) blocks on the diagonal of a (J·v, J·v) matrix."""
    count = len(matrix) // v
    every = np.arange(count)
    return matrix.reshape(count, v, count, v)[every, :, every, :]
