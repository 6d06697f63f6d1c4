import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibrate.observers import ChannelObserver
from tests.support.arrays import activations

#: XᵀX is summed in float32: T products of one rounding each, and as many additions.
MOMENT_RTOL = 300 * 2.0**-24


def _observe(batches: list[np.ndarray], channels: int, *, second_moment: bool = True) -> ChannelObserver:
    observer = ChannelObserver(channels, second_moment=second_moment)
    for batch in batches:
        assert observer.update(batch)
    return observer


def test_statistics_are_those_of_the_definition(rng: np.random.Generator) -> None:
    x = activations(rng, 3, 50, 33)
    got = _observe([x], 33).statistics()
    rows = x.reshape(-1, 33).astype(np.float64)
    np.testing.assert_array_equal(got.absmax, np.abs(rows).max(axis=0).astype(np.float32))
    np.testing.assert_allclose(got.mean_square, (rows**2).mean(axis=0), rtol=1e-13)
    scale = np.sqrt(np.outer((rows**2).mean(axis=0), (rows**2).mean(axis=0)))
    assert got.second_moment is not None
    assert (np.abs(got.second_moment - rows.T @ rows / len(rows)) <= MOMENT_RTOL * scale).all()
    assert got.tokens == 150
    assert got.absmax.dtype == np.float32
    assert got.mean_square.dtype == np.float64


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_batches_of_any_size_equal_the_whole(seed: int, sizes: list[int]) -> None:
    x = activations(np.random.default_rng(seed), sum(sizes) + 1, 12)
    parts = np.split(x, np.cumsum(sizes))
    whole, split = (_observe(batches, 12).statistics() for batches in ([x], parts))
    np.testing.assert_array_equal(split.absmax, whole.absmax)
    np.testing.assert_allclose(split.mean_square, whole.mean_square, rtol=1e-13)
    scale = np.sqrt(np.outer(whole.mean_square, whole.mean_square))
    assert whole.second_moment is not None
    assert split.second_moment is not None
    assert (np.abs(split.second_moment - whole.second_moment) <= MOMENT_RTOL * scale).all()
    assert split.tokens == whole.tokens


def test_negative_maximum_counts(rng: np.random.Generator) -> None:
    x = -np.abs(activations(rng, 20, 16)) - 1
    np.testing.assert_array_equal(_observe([x], 16).absmax, -x.min(axis=0))


def test_large_values_do_not_overflow_their_squares() -> None:
    x = np.array([[3e30, -1.5]], np.float32)
    np.testing.assert_allclose(_observe([x], 2, second_moment=False).statistics().mean_square, [9e60, 2.25], rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_non_finite_batch_is_refused_and_not_added(rng: np.random.Generator, poison: float) -> None:
    x = activations(rng, 9, 16)
    observer = _observe([x], 16)
    before = observer.statistics()
    bad = x.copy()
    bad[4, 3] = poison
    assert not observer.update(bad)
    after = observer.statistics()
    np.testing.assert_array_equal(after.absmax, before.absmax)
    np.testing.assert_array_equal(after.mean_square, before.mean_square)
    assert after.tokens == before.tokens


def test_second_moment_only_on_request(rng: np.random.Generator) -> None:
    assert _observe([activations(rng, 4, 16)], 16, second_moment=False).statistics().second_moment is None
