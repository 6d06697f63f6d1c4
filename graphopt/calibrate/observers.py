"""What is remembered of a linear's input X [tokens, K]: per-channel maximum, mean square, second moment on request."""

__all__ = ["ChannelObserver"]

import numpy as np

from graphopt.core.statistics import LinearStatistics


class ChannelObserver:
    """Accumulates channel statistics over batches; batches of any size give the same result as all of them at once.

    Args:
        channels: K.
        second_moment: whether to accumulate XᵀX too, in K²·4 bytes.

    Attributes:
        absmax: (K,) float32, max over tokens of |X[:, k]|.
        square_sum: (K,) float64, sum over tokens of X[:, k]².
        moment_sum: (K, K) float32, sum over tokens of XᵀX, or None.
        tokens: number of tokens seen.
    """

    def __init__(self, channels: int, *, second_moment: bool = False) -> None:
        self.absmax = np.zeros(channels, np.float32)
        self.square_sum = np.zeros(channels, np.float64)
        self.moment_sum = np.zeros((channels, channels), np.float32) if second_moment else None
        self.tokens = 0

    def update(self, x: np.ndarray) -> bool:
        """Add a batch.

        Args:
            x: (..., K) float32.

        Returns:
            False, without adding anything, if the batch holds NaN or Inf.
        """
        rows = x.reshape(-1, self.absmax.size)
        absmax = np.maximum(rows.max(axis=0, initial=0), -rows.min(axis=0, initial=0))
        if not np.isfinite(absmax).all():
            return False
        np.maximum(self.absmax, absmax, out=self.absmax)
        # Squares in float64: float32 ones overflow from 1.8e19 on, and lose the small rows of a long sum.
        self.square_sum += np.einsum("tk,tk->k", rows, rows, dtype=np.float64)
        if self.moment_sum is not None:
            self.moment_sum += rows.T @ rows
        self.tokens += len(rows)
        return True

    def statistics(self) -> LinearStatistics:
        """Return the means over all tokens seen (at least one)."""
        moment = None if self.moment_sum is None else self.moment_sum / np.float32(self.tokens)
        return LinearStatistics(self.absmax, self.square_sum / self.tokens, self.tokens, moment)
