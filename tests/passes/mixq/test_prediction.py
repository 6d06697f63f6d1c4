"""Online prediction: what is caught, what is remembered, and what becomes of a set that is full."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.mixq import numerics

K, N, CAPACITY = 128, 32, 32
NONE = numerics.pad_indices(np.zeros(0), 16)


def rows(rng: np.random.Generator, outliers: Sequence[int], tokens: int = 12) -> np.ndarray:
    """Normal activations with values 30 to 60 times larger in ``outliers``."""
    x = rng.standard_normal((tokens, K)).astype(np.float32)
    x[:, outliers] *= rng.uniform(30, 60, (tokens, len(outliers))).astype(np.float32)
    return x


def predict(x: np.ndarray, indices: np.ndarray = NONE, *, sigma: float = 0.0, sigma_rms: float = 5.0) -> np.ndarray:
    return numerics.predict_outliers(x, indices, sigma=sigma, sigma_rms=sigma_rms, capacity=CAPACITY)


def channels(indices: np.ndarray) -> list[int]:
    return indices[indices >= 0].tolist()


class Linear:
    """A weight quantized around the channels ``known``, run on activations with any set."""

    def __init__(self, rng: np.random.Generator, known: Sequence[int]) -> None:
        self.w = rng.standard_normal((N, K)).astype(np.float32)
        self.idx = numerics.pad_indices(np.array(known), 16)
        self.wq, self.sw, self.wo = numerics.quantize_weight(self.w, self.idx)

    def error(self, x: np.ndarray, extended: np.ndarray) -> float:
        """Worst ||y - x Wᵀ|| / ||x Wᵀ|| over the tokens."""
        dequantized = self.wq[:, extended].astype(np.float32) * self.sw[:, None]
        columns = numerics.extend_columns(self.wo, self.idx, extended, dequantized)
        parts = numerics.quantize_rows(x, extended)
        y = numerics.linear(*parts, self.wq, self.sw, columns, np.zeros(N, np.float32))
        exact = x @ self.w.T
        return float(np.max(np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)))


def test_an_outlier_that_calibration_never_saw_is_caught_in_the_same_call() -> None:
    rng = np.random.default_rng(0)
    linear, x = Linear(rng, [5]), rows(rng, [5, 77])
    predicted = predict(x, linear.idx)
    assert channels(predicted) == [5, 77]
    assert linear.error(x, predicted) < linear.error(x, linear.idx) / 2
    before, after = (numerics.quantize_rows(x, indices)[1] for indices in (linear.idx, predicted))
    assert (after < 4.5 / 127).all(), "the largest of normal values"
    assert before.max() > 10 * after.max()


def test_an_empty_set_is_as_good_as_the_calibrated_one() -> None:
    rng = np.random.default_rng(1)
    outliers = [3, 40, 41, 100]
    calibrated, online, x = Linear(rng, outliers), Linear(rng, []), rows(rng, outliers)
    # Predicted columns are rounded in steps of 1/127 of their row's largest weight, about 3 standard deviations: that
    # is 3 / 127 / sqrt(12) = 0.7 % of what they add on average, at most twice that. Calibrated ones are exact.
    assert online.error(x, predict(x)) < calibrated.error(x, calibrated.idx) + 0.014
    assert online.error(x, online.idx) > 2 * online.error(x, predict(x))


def test_drifting_outliers_are_followed_and_remembered() -> None:
    rng = np.random.default_rng(2)
    linear, known = Linear(rng, []), NONE
    drift = [[3, 9], [9, 60], [60, 61, 62], [126, 127]]
    seen: set[int] = set()
    for outliers in drift:
        x = rows(rng, outliers)
        known = predict(x, known)
        seen |= set(outliers)
        assert channels(known) == sorted(seen)
        assert linear.error(x, known) < 0.02
    quiet = predict(rows(rng, []), known)
    np.testing.assert_array_equal(quiet, known)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_set_is_ascending_and_only_grows(seed: int, data: st.DataObject) -> None:
    before = data.draw(st.lists(st.integers(0, K - 1), unique=True, max_size=CAPACITY))
    new = data.draw(st.lists(st.integers(0, K - 1), unique=True, max_size=K))
    indices = numerics.pad_indices(np.array(before, np.int32), CAPACITY)
    after = predict(rows(np.random.default_rng(seed), new), indices)
    found = channels(after)
    assert after.dtype == np.int32 and after.shape == (CAPACITY,)
    assert found == sorted(set(found)) and set(before) <= set(found)
    assert (after[len(found) :] == -1).all()


def test_where_there_are_too_many_the_largest_win() -> None:
    x = np.ones((1, K), np.float32)
    x[0, : 2 * CAPACITY] = np.arange(100, 100 + 2 * CAPACITY)
    found = predict(x, sigma=50, sigma_rms=0)
    assert channels(found) == list(range(CAPACITY, 2 * CAPACITY))
    # Among equal ones the first.
    assert channels(predict(np.full((2, K), 9, np.float32), sigma=1, sigma_rms=0)) == list(range(CAPACITY))


def test_a_full_set_keeps_what_it_has_and_the_scale_grows() -> None:
    rng = np.random.default_rng(3)
    full = np.arange(CAPACITY, dtype=np.int32)
    x = rows(rng, [100])
    np.testing.assert_array_equal(predict(x, full), full)
    _, sx, _ = numerics.quantize_rows(x, full)
    np.testing.assert_array_equal(sx[:, 0], np.abs(x[:, CAPACITY:]).max(1) / np.float32(127))


def test_both_bounds_must_be_exceeded() -> None:
    x = rows(np.random.default_rng(4), [8])
    assert channels(predict(x, sigma=6)) == [8]
    assert channels(predict(x, sigma=1e4)) == []
    assert channels(predict(x, sigma_rms=11.4)) == [], "the rms of one channel out of 128 is 1/11.3 of its value"


def test_no_bound_means_no_prediction() -> None:
    x = rows(np.random.default_rng(5), [8])
    assert channels(predict(x, sigma=0, sigma_rms=0)) == []


def test_every_channel_beyond_sigma() -> None:
    x = np.random.default_rng(6).uniform(7, 9, (3, K)).astype(np.float32)
    linear = Linear(np.random.default_rng(7), [])
    found = predict(x, sigma=6, sigma_rms=0)
    assert len(channels(found)) == CAPACITY
    assert linear.error(x, found) < 0.02


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_predicts_nothing(poison: float) -> None:
    x = rows(np.random.default_rng(8), [8])
    x[3, 20] = poison
    for sigma, sigma_rms in ((6, 0), (0, 5)):
        assert channels(predict(x, sigma=sigma, sigma_rms=sigma_rms)) == [8]
    alone = x[3:4]
    assert channels(predict(alone)) == []


def test_no_tokens_and_tokens_of_zeros_predict_nothing() -> None:
    indices = numerics.pad_indices(np.array([4]), 16)
    for x in (np.zeros((0, K), np.float32), np.zeros((4, K), np.float32)):
        assert channels(predict(x, indices)) == [4]


def test_two_states_are_two_arrays() -> None:
    rng = np.random.default_rng(9)
    first, second = NONE, NONE
    for a, b in ([3], [90]), ([4], [91]):
        first, second = predict(rows(rng, a), first), predict(rows(rng, b), second)
    assert (channels(first), channels(second)) == ([3, 4], [90, 91])


def test_columns_are_original_where_there_are_some() -> None:
    rng = np.random.default_rng(10)
    linear = Linear(rng, [5, 9])
    extended = numerics.pad_indices(np.array([2, 5, 9]), 16)
    dequantized = linear.wq[:, extended].astype(np.float32) * linear.sw[:, None]
    columns = numerics.extend_columns(linear.wo.astype(np.float16), linear.idx, extended, dequantized)
    np.testing.assert_array_equal(columns[:, 0], dequantized[:, 0].astype(np.float16))
    np.testing.assert_array_equal(columns[:, 1:3], linear.w[:, [5, 9]].astype(np.float16))
    assert not columns[:, 3:].any()
