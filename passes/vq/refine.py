"""Codebooks for fixed codes: least squares of the output error, by conjugate gradients.

The output error of a strip is a quadratic function of all entries together,

    f(C) = Σ_n w_n (v_n - Ĉ_n) M (v_n - Ĉ_n)ᵀ,     Ĉ_n[v j + e] = Σ_i C[h(j), i, code(n, j, i), e]

With S the linear map from entries to Ĉ, its minimum solves Sᵀ (w S C M) = Sᵀ (w V M). A few steps from the present
entries, scaled by the diagonal, are enough: codes change afterwards anyway.
"""

__all__ = ["refine"]

import numpy as np

from graphopt.passes.vq.moments import Moment


def refine(
    w: np.ndarray,
    weight: np.ndarray,
    codes: np.ndarray,
    books: np.ndarray,
    tile_columns: int,
    moment: Moment,
    steps: int,
) -> np.ndarray:
    """Return better codebooks for ``codes``.

    Args:
        w: (R, K') float32, the strip.
        weight: (R,) float32, w_n.
        codes: (R, J, r) integers.
        books: (Gk, r, E, v) float32, present codebooks.
        tile_columns: columns that share a codebook.
        moment: of the input.
        steps: of conjugate gradients.

    Returns:
        (Gk, r, E, v) float32.
    """
    gather = _Gather(codes, books.shape, tile_columns)
    heavy = weight[:, None].astype(np.float32)
    diagonal = gather.transposed(np.broadcast_to(heavy * moment.diagonal, w.shape))
    usable = diagonal > 0
    scaling = np.divide(1, diagonal, where=usable, out=np.zeros_like(diagonal))
    solution = books.astype(np.float64)
    residual = gather.transposed(heavy * moment.apply(w - gather(books)))
    direction = scaled = scaling * residual
    size = float(np.vdot(residual, scaled))
    for _ in range(steps):
        if size <= 0:
            break
        image = gather.transposed(heavy * moment.apply(gather(direction.astype(np.float32))))
        curvature = float(np.vdot(direction, image))
        if curvature <= 0:
            break
        length = size / curvature
        solution += length * direction
        residual = residual - length * image
        scaled = scaling * residual
        size, previous = float(np.vdot(residual, scaled)), size
        direction = scaled + (size / previous) * direction
    return solution.astype(np.float32)


class _Gather:
    """S, the map from codebooks (Gk, r, E, v) to a strip (R, K') that the codes make, and its transpose."""

    def __init__(self, codes: np.ndarray, shape: tuple[int, ...], tile_columns: int) -> None:
        tiles, residuals, entries, self._v = shape
        self._shape = shape
        tile = np.arange(codes.shape[1]) * self._v // tile_columns
        first = (tile[:, None] * residuals + np.arange(residuals)) * entries
        self._rows = np.ascontiguousarray(np.moveaxis(first + codes, -1, 0)).reshape(residuals, -1)
        self._strip = (len(codes), codes.shape[1] * self._v)
        self._entries = tiles * residuals * entries

    def __call__(self, books: np.ndarray) -> np.ndarray:
        flat = books.reshape(self._entries, self._v)
        total = flat[self._rows[0]]
        for rows in self._rows[1:]:
            total += flat[rows]
        return total.reshape(self._strip)

    def transposed(self, strip: np.ndarray) -> np.ndarray:
        """Return the sums over the vectors that use an entry, (Gk, r, E, v) float64."""
        vectors = strip.reshape(-1, self._v)
        sums = np.zeros((self._entries, self._v))
        for e in range(self._v):
            column = np.ascontiguousarray(vectors[:, e])
            for rows in self._rows:
                sums[:, e] += np.bincount(rows, column, self._entries)
        return sums.reshape(self._shape)
