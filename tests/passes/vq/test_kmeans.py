"""Weighted k-means: the error falls, and odd inputs (few, equal or zero vectors) give finite codebooks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.vq.kmeans import kmeans


def problem(rng: np.random.Generator, positions: int = 6, rows: int = 90, v: int = 4) -> tuple[np.ndarray, ...]:
    """Vectors with rare large ones, a metric for each position, weights of the rows."""
    x = rng.standard_t(4, (positions, rows, v)).astype(np.float32)
    metric = np.tril(rng.standard_normal((positions, v, v))).astype(np.float32)
    metric[:, range(v), range(v)] = np.abs(metric[:, range(v), range(v)]) + 0.2
    return x, metric, np.broadcast_to(rng.uniform(0.1, 3, rows).astype(np.float32), (positions, rows))


def error(x: np.ndarray, metric: np.ndarray, weight: np.ndarray, book: np.ndarray, codes: np.ndarray) -> float:
    turned = ((x - book[codes]) @ metric).astype(np.float64)
    return float((np.square(turned).sum(axis=2) * weight).sum())


@given(seed=st.integers(0, 2**32 - 1), entries=st.sampled_from([1, 2, 16, 100]), v=st.sampled_from([2, 4, 8]))
def test_more_iterations_are_never_worse(seed: int, entries: int, v: int) -> None:
    x, metric, weight = problem(np.random.default_rng(seed), v=v)
    errors = [
        error(x, metric, weight, *kmeans(x, metric, weight, entries, n, np.random.default_rng(1))) for n in (0, 1, 5)
    ]
    # Entries that nobody uses are moved to the worst vectors, which helps those and hurts nobody.
    assert errors[2] <= errors[1] * 1.0001
    assert errors[1] <= errors[0] * 1.0001


def test_one_entry_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(3)
    x, metric, weight = problem(rng)
    book, _ = kmeans(x, metric, weight, 1, 1, rng)
    a = (metric @ metric.transpose(0, 2, 1)).astype(np.float64)
    left = np.einsum("pr,pef->ef", weight, a)
    right = np.einsum("pr,prf,pfe->e", weight, x, a)
    np.testing.assert_allclose(book[0], np.linalg.solve(left, right), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["few", "equal", "zero", "two"])
def test_fewer_different_vectors_than_entries(kind: str) -> None:
    rng = np.random.default_rng(4)
    x, metric, weight = problem(rng)
    if kind == "few":
        x, metric, weight = x[:1, :5], metric[:1], weight[:1, :5]
    elif kind == "equal":
        x = np.broadcast_to(x[0, 0], x.shape)
    elif kind == "zero":
        x = np.zeros_like(x)
    else:
        x = x[0, :2][rng.integers(0, 2, x.shape[:2])]
    book, codes = kmeans(x, metric, weight, 64, 4, rng)
    assert book.shape == (64, 4)
    assert np.isfinite(book).all()
    np.testing.assert_allclose(book[codes], x, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_codebook() -> None:
    x, metric, weight = problem(np.random.default_rng(5))
    books = [kmeans(x, metric, weight, 16, 3, np.random.default_rng(seed))[0] for seed in (7, 7, 8)]
    np.testing.assert_array_equal(books[0], books[1])
    assert not np.array_equal(books[0], books[2])
