"""The metrics are what they say: of one vector alone, and with what the vectors after it make up for."""

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.errors import CalibrationError
from graphopt.passes.vq.moments import ChannelMoment, VectorMoment

Layer = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize(("k", "v"), [(24, 4), (21, 4), (16, 8), (5, 16)])
def test_the_metrics_of_a_second_moment(layer: Callable[[int, int], Layer], k: int, v: int) -> None:
    moment = VectorMoment(layer(1, k)[1], v, 0.01)
    count = -(-k // v)
    assert sorted(moment.order) == list(range(count))
    assert sorted(moment.columns) == list(range(count * v))
    for at, j in enumerate(moment.order):
        here, after = slice(j * v, j * v + v), moment.columns[at * v :]
        block = moment.damped[here, here].astype(np.float64)
        np.testing.assert_allclose(moment.alone[j] @ moment.alone[j].T, block, rtol=1e-4, atol=1e-5 * block.max())
        np.testing.assert_allclose(moment.inverse[j] @ block, np.eye(v), atol=1e-3)
        # The least output error that is left of an error here, over all changes of the columns after it.
        left = np.linalg.inv(np.linalg.inv(moment.damped[np.ix_(after, after)].astype(np.float64))[:v, :v])
        got = moment.feedback[j] @ moment.feedback[j].T
        np.testing.assert_allclose(got, left, rtol=1e-3, atol=1e-3 * left.max())


def test_a_diagonal_second_moment_agrees_with_mean_squares(rng: np.random.Generator) -> None:
    squares = rng.uniform(0.1, 30, 22).astype(np.float32)
    full, channels = VectorMoment(np.diag(squares), 4, 0.01), ChannelMoment(squares, 4, 0.01)
    d = rng.standard_normal((3, 24)).astype(np.float32)
    d[:, 22:] = 0
    np.testing.assert_allclose(full.apply(d)[:, :22], channels.apply(d)[:, :22], rtol=2e-2)
    np.testing.assert_allclose(full.squared_error(d), channels.squared_error(d), rtol=2e-2)


def test_what_is_no_second_moment() -> None:
    with pytest.raises(CalibrationError, match="positive semi-definite"):
        VectorMoment(np.diag([1.0, -5.0, 1.0, 1.0]).astype(np.float32), 4, 0.01)
