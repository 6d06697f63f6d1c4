"""The lattice code, against its definition and against a search of all its points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.vq import e8
from graphopt.passes.vq.e8 import LatticeEncoder, decode_points, nearest_points, table

POINTS = decode_points(np.arange(1 << e8.BITS))


def test_the_points_are_different_and_of_the_shifted_lattice() -> None:
    assert len(np.unique(POINTS, axis=0)) == len(POINTS)
    for points, shift in ((POINTS[: 1 << 15], -0.25), (POINTS[1 << 15 :], 0.25)):
        whole = points - shift
        assert (np.abs(whole) % 1 == 0.5).all()
        assert (whole.sum(axis=1) % 2 == 0).all()


def test_the_table_holds_all_short_vectors() -> None:
    norms = np.square(table()).sum(axis=1)
    assert table().shape == (256, 8)
    assert [int((norms == n).sum()) for n in (2, 4, 6, 8, 10, 12)] == [1, 8, 28, 64, 126, 29]


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.1, 0.8, 1.0, 3.0]))
def test_nearest_points_are_nearest(seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((5, 8)) * size).astype(np.float32)
    found = np.square(x - decode_points(nearest_points(x))).sum(axis=1)
    # |x - p|^2 by one product: subtracting every point of the ball from every x takes ten times as long.
    best = (np.square(POINTS).sum(axis=1) - 2 * x.astype(np.float64) @ POINTS.T).min(axis=1) + np.square(x).sum(axis=1)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.3, 1.0, 1.5]))
def test_short_points_are_those_of_the_search(seed: int, size: float) -> None:
    y = (np.random.default_rng(seed).standard_normal((200, 8)) * size).astype(np.float32)
    codes, values = e8._nearest_half(y)
    searched, searched_values = e8._search(y)
    np.testing.assert_array_equal(codes, searched)
    np.testing.assert_allclose(values, searched_values, rtol=1e-4, atol=1e-5)


def test_ties_and_zeros_are_nearest_too() -> None:
    """Halfway between points, codes may differ but not the distance."""
    x = np.random.default_rng(10).integers(-4, 5, (500, 8)).astype(np.float32) * np.float32(0.25)
    x[:3] = 0
    found = np.square(x - decode_points(nearest_points(x))).sum(axis=1)
    best = (np.square(POINTS).sum(axis=1) - 2 * x.astype(np.float64) @ POINTS.T).min(axis=1) + np.square(x).sum(axis=1)
    np.testing.assert_allclose(found, best, atol=1e-5)


def gaussian_error(residuals: int, rms: float, ratio: float, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(e8, "RATIOS", (1.0, ratio))
    x = np.random.default_rng(9).standard_normal((4000, 8)).astype(np.float32) * np.float32(rms)
    _, values = LatticeEncoder(residuals).encode(0, x, np.eye(8, dtype=np.float32))
    return float(np.square(x - values).mean() / rms**2)


def test_sizes_are_the_best_for_gaussian_values(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = e8.RATIOS[1]
    best = gaussian_error(2, e8.RMS[2], ratio, monkeypatch)
    assert best < 0.0088, "INT4 in groups of 64 has 0.0116"
    for rms, other in ((0.8, ratio), (1.0, ratio), (e8.RMS[2], 0.23), (e8.RMS[2], 0.3)):
        assert gaussian_error(2, rms, other, monkeypatch) > 1.01 * best
    one = gaussian_error(1, e8.RMS[1], ratio, monkeypatch)
    assert one < 0.095
    assert all(gaussian_error(1, rms, ratio, monkeypatch) > one for rms in (0.9, 1.2))
