"""One linear's weight -> what a MixQ linear stores of it, a few rows at a time."""

__all__ = ["QuantizedWeight", "quantize_weight"]

from dataclasses import dataclass

import numpy as np

from graphopt.core.canonical import LinearView
from graphopt.core.chunks import in_chunks
from graphopt.errors import ModelError
from graphopt.ir import weights
from graphopt.numerics.normalized_error import NormalizedError
from graphopt.numerics.packing import pack_int4, packed_bytes
from graphopt.passes.mixq import numerics, rounding
from graphopt.passes.mixq.config import MixQConfig
from graphopt.passes.mixq.rounding import SecondMoment

#: Bytes of float32 weight rows that a thread quantizes at a time.
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class QuantizedWeight:
    """The stored form of a weight (N, K).

    Attributes:
        codes: (N, K) int8, or (N, B) packed if they have 4 bits.
        groups: (G, N) int8 integer group scales; None if the codes have 8 bits.
        group: columns of a group, as the op's attribute has it.
        scale: (N,) float32.
        outliers: (N, C) of the weight's dtype.
        error: ||W - Ŵ|| / ||W||.
        output_error: the same of the outputs on the calibration data, ||X(W - Ŵ)ᵀ|| / ||XWᵀ||; None without second
            moments.
    """

    codes: np.ndarray
    groups: np.ndarray | None
    group: int
    scale: np.ndarray
    outliers: np.ndarray
    error: float
    output_error: float | None

    @property
    def rows(self) -> int:
        """N."""
        return int(self.scale.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        arrays = (self.codes, self.groups, self.scale, self.outliers)
        return sum(a.nbytes for a in arrays if a is not None)


def quantize_weight(
    linear: LinearView,
    indices: np.ndarray,
    config: MixQConfig,
    *,
    importance: np.ndarray | None = None,
    moment: SecondMoment | None = None,
) -> QuantizedWeight:
    """Quantize the weight of ``linear`` around the outlier channels ``indices`` ((C,) int32, padded with -1).

    Args:
        linear: whose weight is read in chunks of rows.
        indices: outlier channels.
        config: bits, group and clip.
        importance: (K,) mean squares of the input channels, for the clip search.
        moment: second moment of the input: rounds with GPTQ. None rounds to nearest.

    Raises:
        ModelError: the weight holds NaN or Inf.
    """
    n, k = linear.shape
    dtype = weights.numpy_dtype(weights.onnx_dtype(linear.weight.dtype))
    four = config.weight_bits == 4
    codes = np.empty((n, packed_bytes(k) if four else k), np.int8)
    scale, outliers = np.empty(n, np.float32), np.empty((n, indices.size), dtype)
    groups = np.empty((-(-k // config.group) if config.group else 1, n), np.int8)
    inner = ~numerics.outlier_mask(indices, k)

    def quantized(rows: slice) -> tuple[np.ndarray, rounding.Grid, np.ndarray, NormalizedError]:
        w = np.ascontiguousarray(linear.rows(rows.start, rows.stop))
        exact = w.astype(np.float32)
        if not np.isfinite(exact).all():
            raise ModelError(
                f"weight '{linear.weight.name}' of '{linear.name}' holds NaN or Inf; repair the model first"
            )
        errors = NormalizedError()
        bulk = exact * inner
        grid = rounding.fit(bulk, config.weight_bits, config.group, clip=config.clip, importance=importance)
        if moment is None:
            rounded = rounding.nearest(bulk, grid)
        else:
            rounded, output_error = rounding.gptq(bulk, grid, moment)
            errors.add_output(moment.squared_error(exact), output_error)
        errors.add_weight(exact, bulk - grid.values(rounded))
        return pack_int4(rounded) if four else rounded, grid, numerics.gather_outliers(w, indices), errors

    errors = NormalizedError()
    for rows, (found, grid, outside, of_rows) in in_chunks(n, max(1, _CHUNK_BYTES // (4 * k)), quantized):
        codes[rows], outliers[rows] = found, outside
        scale[rows], groups[:, rows] = grid.scale, grid.groups
        errors.add(of_rows)
    return QuantizedWeight(
        codes=codes,
        groups=groups if four else None,
        group=config.group or 2 * packed_bytes(k),
        scale=scale,
        outliers=outliers,
        error=errors.of_weight(),
        output_error=None if moment is None else errors.of_output(),
    )
