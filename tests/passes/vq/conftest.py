"""Inputs and weights as linears have them: correlated channels of different sizes, rows of different sizes."""

from collections.abc import Callable

import numpy as np
import pytest

Layer = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def layer(rng: np.random.Generator) -> Callable[[int, int], Layer]:
    """Return a function (N, K) -> weight (N, K) with rare large values, and second moment (K, K) of its input."""

    def make(n: int, k: int) -> Layer:
        common = rng.standard_normal((400, 4)) @ rng.standard_normal((4, k))
        x = (rng.standard_normal((400, k)) + common) * 10.0 ** rng.uniform(-0.7, 0.7, k)
        w = rng.standard_t(4, (n, k)) * 10.0 ** rng.uniform(-1, 1, (n, 1))
        return w.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)

    return make
