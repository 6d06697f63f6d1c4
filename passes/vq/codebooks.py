"""Trained codebooks of a strip of rows: k-means, then codes and codebooks in turns against the output error."""

__all__ = ["BookEncoder", "Training", "code", "train"]

from dataclasses import dataclass

import numpy as np

from graphopt.passes.vq.encode import Encoder, descent, feedback
from graphopt.passes.vq.kmeans import kmeans
from graphopt.passes.vq.moments import Moment, VectorMoment
from graphopt.passes.vq.numerics import decode
from graphopt.passes.vq.refine import refine
from graphopt.passes.vq.search import nearest_sum

#: Vectors that k-means sees of a tile at most, and per entry at least where there are so many.
_SAMPLES, _SAMPLES_PER_ENTRY = 1 << 14, 4
#: How often k-means moves entries, and steps of conjugate gradients in a round of refining.
_ITERATIONS, _STEPS = 8, 10
#: Sums tried per vector where codes are additive: this many scores of a codebook, within limits.
_BEAM_SCORES, _LEAST_BEAM, _MOST_BEAM = 2048, 2, 8


@dataclass(frozen=True)
class Training:
    """How codebooks are made.

    Attributes:
        vector, bits, residuals: v, b and r.
        tile_columns: columns that share codebooks.
        rounds: of refining codebooks and coding again.
    """

    vector: int
    bits: int
    residuals: int
    tile_columns: int
    rounds: int = 3

    @property
    def entries(self) -> int:
        """2^b."""
        return 1 << self.bits


class BookEncoder:
    """Encodes with codebooks (Gk, r, E, v) float32; see `graphopt.passes.vq.encode.Encoder`."""

    def __init__(self, books: np.ndarray, tile_columns: int) -> None:
        self._books = books
        self._beam = min(max(_BEAM_SCORES // books.shape[2], _LEAST_BEAM), _MOST_BEAM)
        self._per_tile = tile_columns // books.shape[-1]

    def encode(self, position: int, x: np.ndarray, metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Encoder`."""
        books = self._books[position // self._per_tile]
        codes = nearest_sum(x @ metric, books @ metric, self._beam)
        value = books[0][codes[:, 0]]
        for i in range(1, len(books)):
            value = value + books[i][codes[:, i]]
        return codes, value


def train(
    w: np.ndarray, weight: np.ndarray, moment: Moment, how: Training, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train codebooks for a strip and code it.

    Args:
        w: (R, K') float32, rows of about the same size.
        weight: (R,) float32, weights of the rows' squared errors.
        moment: of the input.
        how: settings.
        rng: for everything random.

    Returns:
        codebooks (Gk, r, 2^b, v) float32 with float16 values, codes (R, J, r) int64 and values (R, K') float32.
    """
    books = _first_books(w, weight, moment, how, rng)
    codes, values = feedback(w, moment, BookEncoder(books, how.tile_columns))
    for _ in range(how.rounds):
        books = refine(w, weight, codes, books, how.tile_columns, moment, _STEPS)
        books = books.astype(np.float16).astype(np.float32)
        values = decode(codes, books[None], len(w), how.tile_columns)
        codes, values = _code_again(w, codes, values, moment, BookEncoder(books, how.tile_columns))
    return books, codes, values


def code(w: np.ndarray, moment: Moment, encoder: Encoder, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Code a strip with what is given: `feedback`, then ``rounds`` descents; returns what they return."""
    codes, values = feedback(w, moment, encoder)
    for _ in range(rounds):
        codes, values = _code_again(w, codes, values, moment, encoder)
    return codes, values


def _code_again(
    w: np.ndarray, codes: np.ndarray, values: np.ndarray, moment: Moment, encoder: Encoder
) -> tuple[np.ndarray, np.ndarray]:
    # Without correlations between channels vectors do not depend on each other.
    if isinstance(moment, VectorMoment):
        return descent(w, codes, values, moment, encoder)
    return feedback(w, moment, encoder)


def _first_books(
    w: np.ndarray, weight: np.ndarray, moment: Moment, how: Training, rng: np.random.Generator
) -> np.ndarray:
    v, entries = how.vector, how.entries
    per_tile = how.tile_columns // v
    samples = max(_SAMPLES, _SAMPLES_PER_ENTRY * entries)
    x = np.ascontiguousarray(w.reshape(len(w), -1, v).transpose(1, 0, 2))
    tiles = -(-len(x) // per_tile)
    books = np.zeros((tiles, how.residuals, entries, v), np.float32)
    for tile in range(tiles):
        at = slice(tile * per_tile, (tile + 1) * per_tile)
        left, metric = x[at], moment.feedback[at]
        heavy = np.broadcast_to(weight, left.shape[:2])
        if (rows := max(1, samples // len(left))) < len(w):
            every = np.tile(np.arange(len(w)), (len(left), 1))
            picked = rng.permuted(every, axis=1)[:, :rows]
            left = np.take_along_axis(left, picked[..., None], axis=1)
            heavy = np.take_along_axis(heavy, picked, axis=1)
        for i in range(how.residuals):
            books[tile, i], codes = kmeans(left, metric, heavy, entries, _ITERATIONS, rng)
            left = left - books[tile, i][codes]
    return books
