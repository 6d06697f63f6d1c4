"""How far a quantized weight is from the exact one, summed over chunks of its rows."""

__all__ = ["NormalizedError"]

from dataclasses import dataclass

import numpy as np


@dataclass
class NormalizedError:
    """Sums of squares over the rows of a weight W (N, K), and their ratios.

    Attributes:
        weight, weight_error: ||W||² and ||W - Ŵ||².
        output, output_error: ||XWᵀ||² and ||X(W - Ŵ)ᵀ||² of calibration data X, up to one factor.
    """

    weight: float = 0.0
    weight_error: float = 0.0
    output: float = 0.0
    output_error: float = 0.0

    def add_weight(self, exact: np.ndarray, difference: np.ndarray) -> None:
        """Add rows of the weight and of the difference that quantization makes; both (rows, K) float32."""
        self.weight += float(np.einsum("nk,nk->", exact, exact, dtype=np.float64))
        self.weight_error += float(np.einsum("nk,nk->", difference, difference, dtype=np.float64))

    def add_output(self, squares: np.ndarray, squared_errors: np.ndarray) -> None:
        """Add the mean square of some outputs and of their errors; both (rows,) float64."""
        self.output += float(squares.sum())
        self.output_error += float(squared_errors.sum())

    def add(self, other: "NormalizedError") -> None:
        """Add the sums of other rows."""
        self.weight += other.weight
        self.weight_error += other.weight_error
        self.output += other.output
        self.output_error += other.output_error

    def of_weight(self) -> float:
        """Return ||W - Ŵ|| / ||W||, 0 for a weight of zeros."""
        return _ratio(self.weight_error, self.weight)

    def of_output(self) -> float:
        """Return ||X(W - Ŵ)ᵀ|| / ||XWᵀ||, 0 for outputs of zeros."""
        return _ratio(self.output_error, self.output)


def _ratio(squared_error: float, square: float) -> float:
    # A quadratic form in float32 can fall below zero by its rounding.
    return float(np.sqrt(max(squared_error, 0.0) / square)) if square > 0 else 0.0
