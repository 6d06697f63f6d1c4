"""The factor of second-order rounding: U is triangular, and UᵀU inverts the damped moment of the channels given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import CalibrationError
from graphopt.numerics.second_order import inverse_factor


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
