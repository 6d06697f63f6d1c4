"""The equations of MixQ, on random inputs with planted outliers and on the inputs that break the released code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.numerics import affine
from graphopt.passes.mixq import numerics


def planted(rng: np.random.Generator, tokens: int, channels: int, outliers: list[int]) -> np.ndarray:
    x = rng.standard_normal((tokens, channels)).astype(np.float32)
    x[:, outliers] *= 40
    return x


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 9),
    channels=st.integers(1, 130),
    data=st.data(),
)
def test_rows_come_back_within_half_a_step(seed: int, tokens: int, channels: int, data: st.DataObject) -> None:
    outliers = data.draw(st.lists(st.integers(0, channels - 1), unique=True, max_size=16))
    x = planted(np.random.default_rng(seed), tokens, channels, outliers)
    indices = numerics.pad_indices(np.array(outliers, np.int32), 16)
    xq, sx, xo = numerics.quantize_rows(x, indices)
    mask = numerics.outlier_mask(indices, channels)
    assert not xq[:, mask].any()
    np.testing.assert_array_equal(xo[:, : len(outliers)], x[:, sorted(outliers)])
    assert not xo[:, len(outliers) :].any()
    # Half a step, plus the float32 rounding of the product and of the scale.
    assert (np.abs(x - xq * sx)[:, ~mask] <= sx * (0.5 + 127 * 2.0**-22)).all()


def test_rows_may_have_any_number_of_leading_axes() -> None:
    x = planted(np.random.default_rng(9), 12, 40, [3, 17])
    indices = numerics.pad_indices(np.array([3, 17]), 16)
    for lead in ((2, 3, 2), (12,), (1, 12)):
        for got, want in zip(
            numerics.quantize_rows(x.reshape(*lead, 40), indices), numerics.quantize_rows(x, indices), strict=True
        ):
            np.testing.assert_array_equal(got, want.reshape(*lead, -1))


def test_outliers_do_not_inflate_the_scale() -> None:
    rng = np.random.default_rng(0)
    x = planted(rng, 8, 64, [5])
    with_outlier = numerics.quantize_rows(x, numerics.pad_indices(np.array([5]), 16))[1]
    clean = np.delete(x, 5, axis=1)
    np.testing.assert_array_equal(with_outlier, affine.absmax_scale(clean)[0])


def test_scale_and_codes_use_the_same_127() -> None:
    x = np.array([[127.0, -127.0, 64.0, 0.5, 1.5]], np.float32)
    xq, sx, _ = numerics.quantize_rows(x, numerics.pad_indices(np.zeros(0), 16))
    assert sx.item() == 1.0
    np.testing.assert_array_equal(xq, [[127, -127, 64, 0, 2]])  # ties to even


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_values_stay_in_their_row(poison: float) -> None:
    rng = np.random.default_rng(1)
    x = planted(rng, 3, 32, [4])
    x[1, 9] = poison
    indices = numerics.pad_indices(np.array([4]), 16)
    w = rng.standard_normal((8, 32)).astype(np.float32)
    bias = np.zeros(8, np.float32)
    y = numerics.linear(*numerics.quantize_rows(x, indices), *numerics.quantize_weight(w, indices), bias)
    assert not np.isfinite(y[1]).any()
    x[1, 9] = 0
    clean = numerics.linear(*numerics.quantize_rows(x, indices), *numerics.quantize_weight(w, indices), bias)
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_non_finite_outlier_reaches_only_its_row() -> None:
    rng = np.random.default_rng(2)
    x = planted(rng, 3, 32, [4])
    x[2, 4] = np.nan
    indices = numerics.pad_indices(np.array([4]), 16)
    weight = numerics.quantize_weight(rng.standard_normal((8, 32)).astype(np.float32), indices)
    y = numerics.linear(*numerics.quantize_rows(x, indices), *weight, np.zeros(8, np.float32))
    assert np.isfinite(y[:2]).all()
    assert np.isnan(y[2]).all()


def test_all_zero_rows_and_all_outlier_rows_give_exact_results() -> None:
    rng = np.random.default_rng(3)
    x = np.zeros((2, 16), np.float32)
    x[1] = rng.standard_normal(16) * 30
    indices = np.arange(16, dtype=np.int32)
    xq, sx, xo = numerics.quantize_rows(x, indices)
    assert not xq.any()
    assert not sx.any()
    np.testing.assert_array_equal(xo, x)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 8), rows=st.integers(1, 40), channels=st.integers(64, 256))
def test_linear_error_is_bounded_by_the_steps(seed: int, tokens: int, rows: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    outliers = rng.choice(channels, 5, replace=False)
    x = planted(rng, tokens, channels, outliers.tolist())
    w = rng.standard_normal((rows, channels)).astype(np.float32)
    indices = numerics.pad_indices(outliers, 16)
    xq, sx, xo = numerics.quantize_rows(x, indices)
    wq, sw, wo = numerics.quantize_weight(w, indices)
    y = numerics.linear(xq, sx, xo, wq, sw, wo, np.zeros(rows, np.float32))
    inner = ~numerics.outlier_mask(indices, channels)
    dx, dw = np.abs(x - xq * sx) * inner, np.abs(w - wq * sw[:, None]) * inner
    # |xw - x'w'| <= |dx||w| + |x'||dw|, summed; plus float32 rounding of the result.
    bound = dx @ np.abs(w).T + np.abs(xq * sx) @ dw.T
    assert (np.abs(y - x @ w.T) <= bound + 1e-5 * np.abs(x) @ np.abs(w).T).all()


def test_outliers_in_16_bits_beat_no_outliers_by_a_wide_margin() -> None:
    rng = np.random.default_rng(4)
    x, w = planted(rng, 64, 512, [7, 100, 300]), rng.standard_normal((64, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ w.T

    def error(outliers: list[int]) -> float:
        indices = numerics.pad_indices(np.array(outliers), 16)
        parts = *numerics.quantize_rows(x, indices), *numerics.quantize_weight(w, indices)
        return float(np.linalg.norm(numerics.linear(*parts, np.zeros(64, np.float32)) - exact) / np.linalg.norm(exact))

    assert error([7, 100, 300]) < error([]) / 3


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("threshold", [2, 5]), ("rms", [2, 3, 5]), ("top", [5])],
)
def test_selection_rules(rule: str, expected: list[int]) -> None:
    absmax = np.array([1, 2, 8, 5, 0.5, 9], np.float32)
    chosen = numerics.select_outliers(absmax, 1.5, rule=rule, threshold=6.0, multiple=3.0, top=1, capacity=16)
    np.testing.assert_array_equal(chosen, expected)


def test_capacity_keeps_the_largest() -> None:
    absmax = np.arange(40, dtype=np.float32)
    chosen = numerics.select_outliers(absmax, 1.0, rule="rms", threshold=0, multiple=1.0, top=0, capacity=16)
    np.testing.assert_array_equal(chosen, np.arange(24, 40))


def test_one_group_may_be_far_longer_than_the_row() -> None:
    codes = np.random.default_rng(3).integers(-7, 8, (5, 100), np.int8)
    scales = np.arange(1, 6, dtype=np.int8)[None]
    grouped = numerics.grouped_codes(codes, scales, 1 << 40)  # to repeat scales that often would take all memory
    np.testing.assert_array_equal(grouped, codes * scales.T)
