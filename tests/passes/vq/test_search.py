"""Nearest entries, against distances written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.vq.search import nearest, nearest_sum

seeds, vectors = st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8, 16])


def squares(x: np.ndarray) -> np.ndarray:
    return np.square(x, dtype=np.float64).sum(axis=-1)


@given(seed=seeds, count=st.integers(0, 3000), entries=st.integers(1, 300), v=vectors)
def test_nearest(seed: int, count: int, entries: int, v: int) -> None:
    rng = np.random.default_rng(seed)
    x, book = (rng.standard_t(4, (n, v)).astype(np.float32) for n in (count, entries))
    codes = nearest(x, book)
    assert codes.shape == (count,)
    distances = squares(x[:50, None] - book)
    found = distances[np.arange(len(distances)), codes[:50]]
    assert (found <= distances.min(axis=1) + 1e-5 * (1 + squares(x[:50]))).all()


def test_the_lowest_of_equal_entries_wins() -> None:
    book = np.array([[5, 5], [1, 2], [1, 2], [1, 2]], np.float32)
    np.testing.assert_array_equal(nearest(np.array([[1, 2], [4, 6]], np.float32), book), [1, 0])


@given(seed=seeds, residuals=st.integers(1, 3), v=vectors)
def test_a_wide_enough_beam_finds_the_best_sum_of_two(seed: int, residuals: int, v: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, v)).astype(np.float32)
    books = rng.standard_normal((residuals, 8, v)).astype(np.float32)
    wide = nearest_sum(x, books, 8)
    narrow = nearest_sum(x, books, 1)
    errors = [squares(x - sum(b[c] for b, c in zip(books, codes.T, strict=True))) for codes in (wide, narrow)]
    assert (errors[0] <= errors[1] + 1e-4).all()
    if residuals == 2:
        every = squares(x[:, None, None] - books[0][:, None] - books[1][None])
        np.testing.assert_allclose(errors[0], every.reshape(len(x), -1).min(axis=1), rtol=1e-4, atol=1e-4)
