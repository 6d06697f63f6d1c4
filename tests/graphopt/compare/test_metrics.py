import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.compare.metrics import METRICS, Difference, DifferenceMeter, Tolerance
from tests.support.arrays import activations


def _measure(*pairs: tuple[np.ndarray, np.ndarray], tolerance: Tolerance | None = None) -> Difference:
    meter = DifferenceMeter("y", tolerance or Tolerance())
    for a, b in pairs:
        meter.update(a, b)
    return meter.result()


def test_metrics_are_those_of_the_definition(rng: np.random.Generator) -> None:
    b = activations(rng, 9, 32)
    a = b + rng.standard_normal(b.shape).astype(np.float32) * np.float32(0.1)
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    got = _measure((a, b), tolerance=Tolerance(rtol=0.01, atol=0.05))
    assert got.max_abs == np.abs(x - y).max()
    assert got.rms == pytest.approx(np.sqrt(((x - y) ** 2).mean()), rel=1e-12)
    assert got.normalized == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-12)
    assert got.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert got.excess == pytest.approx((np.abs(x - y) - 0.05 - 0.01 * np.abs(y)).max(), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_samples_add_up(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = activations(rng, 3 * parts, 16), activations(rng, 3 * parts, 16)
    whole = _measure((a, b))
    split = _measure(*zip(np.split(a, parts), np.split(b, parts), strict=True))
    for field in ("max_abs", "rms", "normalized", "cosine", "excess"):
        assert getattr(split, field) == pytest.approx(getattr(whole, field), rel=1e-12)


def test_every_metric_decides_by_its_own_bound() -> None:
    b = np.array([1.0, -2.0, 4.0, 100.0])
    a = b + np.array([0.01, 0.0, 0.0, -0.5])
    norm = math.sqrt(0.01**2 + 0.5**2) / np.linalg.norm(b)
    lost = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    bounds = {
        "normalized": Tolerance("normalized", rtol=norm, atol=0),
        "allclose": Tolerance("allclose", rtol=0.01, atol=0.0),
        "max-abs": Tolerance("max-abs", rtol=0, atol=0.5),
        "cosine": Tolerance("cosine", rtol=lost, atol=0),
    }
    assert set(bounds) == set(METRICS)
    for tolerance in bounds.values():
        slack = Tolerance(tolerance.metric, tolerance.rtol * 1.001, tolerance.atol * 1.001)
        tight = Tolerance(tolerance.metric, tolerance.rtol * 0.99, tolerance.atol * 0.99)
        assert _measure((a, b), tolerance=slack).passed
        assert not _measure((a, b), tolerance=tight).passed


@pytest.mark.parametrize("metric", METRICS)
def test_equal_values_pass_with_no_tolerance_at_all(rng: np.random.Generator, metric: str) -> None:
    x = activations(rng, 4, 16)
    got = _measure((x, x), tolerance=Tolerance(metric, 1e-15, 0))
    assert got.passed
    assert (got.max_abs, got.rms, got.normalized) == (0, 0, 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_value_on_one_side_only_fails(rng: np.random.Generator, metric: str, poison: float) -> None:
    x = activations(rng, 4, 16)
    bad = x.copy()
    bad[1, 2] = poison
    loose = Tolerance(metric, 1e9, 1e9)
    for pair in itertools.permutations((x, bad)):
        got = _measure(pair, tolerance=loose)  # type: ignore[arg-type]
        assert not got.passed
        assert got.reason == "NaN or Inf in one of the two only"
    assert _measure((bad, bad), tolerance=loose).passed
    assert not _measure((bad, -bad), tolerance=loose).passed or np.isnan(poison)


@pytest.mark.parametrize("metric", METRICS)
def test_two_models_that_say_nothing_but_nan_are_not_equal(metric: str) -> None:
    nothing = np.full((4, 16), np.nan)
    got = _measure((nothing, nothing), tolerance=Tolerance(metric, 1e9, 1e9))
    assert not got.passed and got.reason == "nothing but NaN in both"
    infinite = np.full((4, 16), -np.inf)
    assert _measure((infinite, infinite), tolerance=Tolerance(metric, 1e9, 1e9)).passed


def test_another_shape_fails(rng: np.random.Generator) -> None:
    got = _measure((activations(rng, 4, 16), activations(rng, 2, 32)), tolerance=Tolerance("cosine", 2, 2))
    assert not got.passed
    assert got.reason == "shape [4, 16] against [2, 32]"


def test_nothing_is_close_to_zero_relatively(rng: np.random.Generator) -> None:
    x = activations(rng, 4, 16)
    got = _measure((x, x * 0))
    assert math.isinf(got.normalized)
    assert not got.passed
    assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["normalized"] is None


def test_empty_and_boolean_values(rng: np.random.Generator) -> None:
    assert _measure((np.zeros((0, 4)), np.zeros((0, 4)))).passed
    flags = rng.random((4, 8)) < 0.5
    assert _measure((flags, flags)).passed
    assert not _measure((flags, ~flags)).passed
