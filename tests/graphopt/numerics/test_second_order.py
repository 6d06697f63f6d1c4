"""The factor of second-order rounding: U is triangular, and UᵀU inverts the damped moment of the channels given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import CalibrationError
from graphopt.numerics.second_order import SecondMoment, inverse_factor


@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 200), damping=st.sampled_from([0.01, 0.5]))
def test_it_inverts_the_moment_in_any_order(seed: int, channels: int, damping: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, channels)) * 10.0 ** rng.uniform(-1, 1, channels)
    moment = (x.T @ x / len(x)).astype(np.float32)
    order = rng.permutation(channels)[: rng.integers(1, channels + 1)]
    u = inverse_factor(moment, order, damping).astype(np.float64)
    np.testing.assert_array_equal(u, np.triu(u))
    damped = moment[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += damping * np.trace(damped) / len(order)
    error = 2.0**-24 * np.linalg.cond(damped) * (8 + len(order))  # of U, rounded to float32
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(len(order)), atol=error)


def test_channels_that_never_fire_round_as_they_are() -> None:
    np.testing.assert_array_equal(inverse_factor(np.zeros((5, 5), np.float32), np.arange(5), 0.01), np.eye(5))


def test_what_is_no_second_moment() -> None:
    with pytest.raises(CalibrationError, match="positive semi-definite"):
        inverse_factor(np.diag([1.0, -5.0]).astype(np.float32), np.arange(2), 0.01)


@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 150))
def test_columns_come_once_each_and_make_up_for_the_errors_before(seed: int, channels: int) -> None:
    """The output error after rounding to integers is Σ_k (e_k / U[k, k])² with the errors e as they were made."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, channels)) @ rng.standard_normal((channels, channels))
    inner, w = rng.random(channels) < 0.9, rng.standard_normal((3, channels)).astype(np.float32) * 5
    moment = SecondMoment((x.T @ x / len(x)).astype(np.float32), inner, 0.01)
    w[:, ~inner] = 0
    result, errors, seen = w.copy(), np.zeros(3), []

    def rounded(k: int, column: np.ndarray) -> np.ndarray:
        seen.append(k)
        value = np.rint(column)
        errors[:] += np.square((column - value) / moment.factor[k, k])
        result[:, moment.order[k]] = value
        return value

    moment.round_columns(w, rounded)
    assert seen == list(range(np.count_nonzero(inner)))
    d = (result - w)[:, moment.order].astype(np.float64)
    inverse = np.linalg.inv(moment.factor.astype(np.float64))
    np.testing.assert_allclose(np.square(d @ inverse).sum(axis=1), errors, rtol=2e-2, atol=1e-6)
