"""One linear's weight -> what a vector-quantized linear stores of it, a strip of rows at a time."""

__all__ = ["QuantizedWeight", "quantize_weight"]

from dataclasses import dataclass

import numpy as np

from graphopt.core.canonical import LinearView
from graphopt.errors import ModelError
from graphopt.numerics.normalized_error import NormalizedError
from graphopt.passes.vq import e8, hadamard, numerics
from graphopt.passes.vq.codebooks import BookEncoder, Training, code, train
from graphopt.passes.vq.config import VQConfig
from graphopt.passes.vq.encode import Encoder
from graphopt.passes.vq.moments import Moment

#: Weights of one strip where rows are independent, and weights that codebooks of a whole tensor are trained on.
_STRIP = 1 << 22


@dataclass(frozen=True)
class QuantizedWeight:
    """The stored form of a weight (N, K).

    Attributes:
        codes: (N, B) int8, packed.
        codebooks: (Gn, Gk, r, 2^b, v) float16; None for the lattice.
        scale: (N,) float32.
        bits, residuals: b and r.
        tile_rows, tile_columns: as the op's attributes have them.
        error: ||W - Ŵ|| / ||W||.
        output_error: the same of the outputs on the calibration data, ||X(W - Ŵ)ᵀ|| / ||XWᵀ||.
    """

    codes: np.ndarray
    codebooks: np.ndarray | None
    scale: np.ndarray
    bits: int
    residuals: int
    tile_rows: int
    tile_columns: int
    error: float
    output_error: float

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(a.nbytes for a in (self.codes, self.codebooks, self.scale) if a is not None)


def quantize_weight(
    linear: LinearView, config: VQConfig, moment: Moment, signs: np.ndarray | None, rng: np.random.Generator
) -> QuantizedWeight:
    """Quantize the weight of ``linear``.

    Args:
        linear: whose weight is read in strips of rows.
        config: settings.
        moment: of the linear's input, transformed if ``signs`` are given.
        signs: of the Hadamard transform, for the lattice; None for trained codebooks.
        rng: for everything random.

    Raises:
        ModelError: the weight holds NaN or Inf.
    """
    rows, columns = linear.shape[0], len(moment.diagonal)
    tile_rows, tile_columns = (config.tile, config.tile) if config.tile else (rows, columns)
    how = Training(config.vector, config.bits, config.residuals, tile_columns, config.rounds)
    positions = columns // config.vector
    codes = np.empty((rows, positions, config.residuals), np.uint16)
    scale = np.empty(rows, np.float32)
    tiles = -(-rows // tile_rows), -(-columns // tile_columns)
    books = np.zeros((*tiles, config.residuals, how.entries, config.vector), np.float32) if signs is None else None
    errors = NormalizedError()
    encoder: Encoder | None = None
    if books is None:
        encoder = e8.LatticeEncoder(config.residuals)
    elif not config.tile and rows * columns > _STRIP:
        sampled = np.linspace(0, rows - 1, max(1, _STRIP // columns)).astype(np.int64)
        strip = _Strip(_exact(linear, sampled, columns, signs), moment)
        books[0], _, _ = train(strip.rows, strip.size**2, moment, how, rng)
        encoder = BookEncoder(books[0], tile_columns)
    step = config.tile or max(1, _STRIP // columns)
    for number, start in enumerate(range(0, rows, step)):
        at = np.arange(start, min(start + step, rows))
        strip = _Strip(_exact(linear, at, columns, signs), moment, e8.RMS[config.residuals] if books is None else 1.0)
        if encoder is None:
            assert books is not None
            books[number], codes[at], values = train(strip.rows, strip.size**2, moment, how, rng)
        else:
            codes[at], values = code(strip.rows, moment, encoder, config.rounds)
        scale[at] = strip.fitted(values, moment)
        difference = strip.exact - values * scale[at, None]
        errors.add_weight(strip.exact, difference)
        errors.add_output(moment.squared_error(strip.exact), moment.squared_error(difference))
    if books is not None:
        _relabel(codes, books, tile_rows, tile_columns)
    return QuantizedWeight(
        codes=numerics.pack_codes(codes.reshape(rows, -1), config.bits),
        codebooks=None if books is None else books.astype(np.float16),
        scale=scale,
        bits=config.bits,
        residuals=config.residuals,
        tile_rows=tile_rows,
        tile_columns=tile_columns,
        error=errors.of_weight(),
        output_error=errors.of_output(),
    )


def _exact(linear: LinearView, rows: np.ndarray, columns: int, signs: np.ndarray | None) -> np.ndarray:
    """Return some rows of the weight as (R, K') float32, transformed if ``signs`` are given.

    Raises:
        ModelError: they hold NaN or Inf.
    """
    first = int(rows[0])
    exact = linear.rows(first, int(rows[-1]) + 1)[rows - first].astype(np.float32)
    if not np.isfinite(exact).all():
        raise ModelError(f"weight '{linear.weight.name}' of '{linear.name}' holds NaN or Inf; repair the model first")
    if signs is not None:
        return hadamard.transform(exact, signs, hadamard.block_of(exact.shape[1]))
    return np.pad(exact, ((0, 0), (0, columns - exact.shape[1])))


class _Strip:
    """Rows of a weight and the same rows scaled to about one size, as their inputs weight them.

    Attributes:
        exact: (R, K') float32.
        size: (R,) float32, root mean square of each row weighted by the input's mean squares, over ``target``.
        rows: (R, K') float32, exact / size; 0 where that is 0.
    """

    def __init__(self, exact: np.ndarray, moment: Moment, target: float = 1.0) -> None:
        share = moment.diagonal / moment.diagonal.sum(dtype=np.float64)
        self.exact = exact
        self.size = (np.sqrt(np.square(exact) @ share) / target).astype(np.float32)
        inverse = np.divide(1, self.size, where=self.size >= np.finfo(np.float32).tiny, out=np.zeros_like(self.size))
        self.rows = exact * inverse[:, None]

    def fitted(self, values: np.ndarray, moment: Moment) -> np.ndarray:
        """Return the (R,) scales that make the output error of ``values`` (R, K') least."""
        image = moment.apply(values)
        along = np.einsum("rk,rk->r", self.exact, image, dtype=np.float64)
        square = np.einsum("rk,rk->r", values, image, dtype=np.float64)
        return np.divide(along, square, where=square > 0, out=np.zeros_like(square)).astype(np.float32)


def _relabel(codes: np.ndarray, books: np.ndarray, tile_rows: int, tile_columns: int) -> None:
    """Sort the entries of every codebook by use, in place: small codes are the frequent ones, for kernels' caches."""
    per_tile = tile_columns // books.shape[-1]
    for g, h, i in np.ndindex(*books.shape[:3]):
        part = codes[g * tile_rows : (g + 1) * tile_rows, h * per_tile : (h + 1) * per_tile, i]
        order = np.argsort(-np.bincount(part.reshape(-1), minlength=books.shape[3]), kind="stable")
        books[g, h, i] = books[g, h, i][order]
        label = np.empty(len(order), codes.dtype)
        label[order] = np.arange(len(order))
        part[...] = label[part]
