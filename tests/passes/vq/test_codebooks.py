"""Training: every step lowers the output error, and what it returns belongs together."""

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.passes.vq.codebooks import BookEncoder, Training, code, train
from graphopt.passes.vq.encode import descent, feedback
from graphopt.passes.vq.kmeans import kmeans
from graphopt.passes.vq.moments import ChannelMoment, VectorMoment
from graphopt.passes.vq.numerics import decode
from graphopt.passes.vq.refine import refine

Layer = tuple[np.ndarray, np.ndarray]
SHAPES = [(4, 5, 1), (2, 4, 1), (8, 6, 2), (16, 3, 3)]


def scaled(w: np.ndarray, v: int) -> np.ndarray:
    """Rows of about one size, padded to whole vectors."""
    w = w / np.sqrt(np.mean(w * w, axis=1, keepdims=True))
    return np.pad(w, ((0, 0), (0, -w.shape[1] % v)))


@pytest.mark.parametrize(("v", "bits", "residuals"), SHAPES)
@pytest.mark.parametrize("second_order", [True, False])
def test_what_training_returns(
    layer: Callable[[int, int], Layer], v: int, bits: int, residuals: int, second_order: bool
) -> None:
    w, m = layer(60, 70)
    w = scaled(w, v)
    moment = VectorMoment(m, v, 0.01) if second_order else ChannelMoment(np.diagonal(m), v, 0.01)
    weight = np.ones(len(w), np.float32)
    how = Training(v, bits, residuals, 32)
    books, codes, values = train(w, weight, moment, how, np.random.default_rng(1))
    assert books.shape == (-(-w.shape[1] // 32), residuals, 1 << bits, v)
    assert codes.shape == (60, w.shape[1] // v, residuals)
    assert codes.max() < 1 << bits
    np.testing.assert_array_equal(books, books.astype(np.float16))
    np.testing.assert_allclose(values, decode(codes, books[None], len(w), 32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("v", "bits", "residuals"), SHAPES)
def test_rounds_pay(layer: Callable[[int, int], Layer], v: int, bits: int, residuals: int) -> None:
    """With rounds of refining the output error is clearly lower, and with none it is lower than to nearest."""
    w, m = layer(80, 64)
    w, weight = scaled(w, v), np.ones(80, np.float32)
    moment = VectorMoment(m, v, 0.01)

    def error(values: np.ndarray) -> float:
        return float(moment.squared_error(w - values).sum())

    trained = [
        train(w, weight, moment, Training(v, bits, residuals, 64, rounds), np.random.default_rng(1))
        for rounds in (0, 3)
    ]
    books = trained[0][0]
    values = np.concatenate(
        [
            BookEncoder(books, 64).encode(j, w[:, j * v : j * v + v], np.eye(v, dtype=np.float32))[1]
            for j in range(64 // v)
        ],
        axis=1,
    )
    assert error(trained[1][2]) < 0.99 * error(trained[0][2])
    assert error(trained[0][2]) < 0.9 * error(values)


def test_descent_never_hurts_a_row(layer: Callable[[int, int], Layer], rng: np.random.Generator) -> None:
    w, m = layer(50, 48)
    w, moment = scaled(w, 4), VectorMoment(m, 4, 0.01)
    books = rng.standard_normal((2, 2, 16, 4)).astype(np.float32)
    encoder = BookEncoder(books, 32)
    codes, values = feedback(w, moment, encoder)
    better_codes, better = descent(w, codes, values, moment, encoder)
    before, after = moment.squared_error(w - values), moment.squared_error(w - better)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.99 * before.sum()
    np.testing.assert_allclose(better, decode(better_codes, books[None], 50, 32), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(code(w, moment, encoder, 1)[0], better_codes)


def test_refining_finds_the_least_squares(layer: Callable[[int, int], Layer], rng: np.random.Generator) -> None:
    """Against the same problem written out as a matrix."""
    w, m = layer(30, 16)
    w, moment, weight = scaled(w, 4), VectorMoment(m, 4, 0.01), rng.uniform(0.2, 2, 30).astype(np.float32)
    codes = rng.integers(0, 3, (30, 4, 2))
    books = rng.standard_normal((2, 2, 3, 4)).astype(np.float32)
    got = refine(w, weight, codes, books, 8, moment, 200)
    size = books.size
    basis = np.stack([decode(codes, e.reshape(1, *books.shape), 30, 8) for e in np.eye(size, dtype=np.float32)])
    half = np.linalg.cholesky(moment.damped.astype(np.float64))
    weighted = (basis * np.sqrt(weight)[:, None]) @ half
    target = ((w * np.sqrt(weight)[:, None]) @ half).reshape(-1)
    best = np.linalg.lstsq(weighted.reshape(size, -1).T, target, rcond=None)[0]
    residues = [weighted.reshape(size, -1).T @ c - target for c in (best, got.reshape(-1))]
    assert np.square(residues[1]).sum() <= np.square(residues[0]).sum() * (1 + 1e-4)


def test_codebooks_of_exact_vectors_lose_nothing(layer: Callable[[int, int], Layer], rng: np.random.Generator) -> None:
    """A weight made of few vectors is found again."""
    vectors = rng.standard_normal((8, 4)).astype(np.float16).astype(np.float32)
    w = vectors[rng.integers(0, 8, (40, 6))].reshape(40, 24)
    moment = ChannelMoment(np.ones(24), 4, 0.01)
    book, _ = kmeans(w.reshape(40, 6, 4).transpose(1, 0, 2), moment.feedback, np.ones((6, 40), np.float32), 256, 5, rng)
    assert np.isfinite(book).all()
    _, _, values = train(w, np.ones(40, np.float32), moment, Training(4, 8, 1, 24), rng)
    np.testing.assert_allclose(values, w, atol=2e-3)
