"""Sums over chunks of rows are those of the whole weight."""

import numpy as np
import pytest

from graphopt.numerics.normalized_error import NormalizedError


def test_chunks_add_up_to_the_norms() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((30, 40)).astype(np.float32), rng.standard_normal((200, 40)).astype(np.float32)
    w[3] *= 100
    d = (0.1 * rng.standard_normal(w.shape)).astype(np.float32)
    total = NormalizedError()
    for rows in (slice(0, 7), slice(7, 30)):
        part = NormalizedError()
        part.add_weight(w[rows], d[rows])
        part.add_output(*(np.square(x.astype(np.float64) @ a[rows].T).mean(axis=0) for a in (w, d)))
        total.add(part)
    assert total.of_weight() == pytest.approx(np.linalg.norm(d) / np.linalg.norm(w))
    assert total.of_output() == pytest.approx(np.linalg.norm(x @ d.T) / np.linalg.norm(x @ w.T), rel=1e-5)


def test_zeros_and_what_rounds_below_zero() -> None:
    none = NormalizedError()
    assert (none.of_weight(), none.of_output()) == (0.0, 0.0)
    none.add_output(np.ones(1), np.array([-1e-9]))
    assert none.of_output() == 0.0
