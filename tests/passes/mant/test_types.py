"""The sixteen types: the values of the paper, exact in float16, and exact as two int8 tables."""

from statistics import NormalDist

import numpy as np
import pytest

from graphopt.passes.mant.types import INT4_TYPE, KV_STEPS, MANT, NF4, STEPS, split_factors, split_tables


def test_coefficients_are_those_of_the_paper() -> None:
    """For the cache there is 25, which is close to NF4, in place of 5."""
    assert STEPS == (0, 5, 10, 17, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
    assert KV_STEPS == (0, 10, 17, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)


def test_values_are_those_of_the_paper() -> None:
    for type_id, a in enumerate(STEPS):
        magnitudes = np.array([a * i + 2**i for i in range(8)])
        scaled = MANT.values[type_id] * (magnitudes[-1] / MANT.values[type_id, 7])
        np.testing.assert_array_equal(scaled, [*magnitudes, *-magnitudes])
        assert np.log2(magnitudes[-1] / MANT.values[type_id, 7]) % 1 == 0, "not scaled by a power of two"
    np.testing.assert_array_equal(MANT.values[INT4_TYPE] * 8, [*range(8), *(-i for i in range(8))])


@pytest.mark.parametrize("table", [MANT, NF4, MANT.rounded()], ids=["mant", "nf4", "rounded"])
def test_values_are_exact_in_float16_and_at_most_1(table: object) -> None:
    assert isinstance(table, type(MANT))
    used = table.values[list(table.ids)]
    np.testing.assert_array_equal(used, used.astype(np.float16).astype(np.float32))
    assert (table.largest[list(table.ids)] > 0.5).all()
    assert np.abs(used).max() <= 1
    ordered = np.take_along_axis(table.values, table.ascending.astype(np.intp), axis=1)[list(table.ids)]
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_two_int8_tables_are_exact() -> None:
    tables, factors = split_tables(), split_factors()
    assert tables.dtype == np.int8
    np.testing.assert_array_equal(tables[1, :8], [1, 1, 2, 5, 12, 27, 58, 121])
    sums = np.einsum("pt,pc->tc", factors.astype(np.float64), tables.astype(np.float64))
    np.testing.assert_array_equal(sums, MANT.values.astype(np.float64))


def test_one_int8_table_is_close() -> None:
    rounded = MANT.rounded()
    assert np.abs(rounded.integers().astype(int)).max() == 127
    error = np.abs(rounded.values / rounded.largest[:, None] - MANT.values / MANT.largest[:, None])
    assert error.max() <= 0.5 / 127 + 1e-6


def test_nf4_is_the_published_table() -> None:
    """Quantiles of a normal distribution: dense around zero, which is one of its values, and not symmetric."""
    ordered = np.sort(NF4.values[0])
    # Quantiles of a normal distribution from this share of it inwards, as the authors' code makes them.
    share, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(share, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(share, 0.5, 8)[:-1]]
    published = np.sort([*negative, 0, *positive]) / max(positive)
    np.testing.assert_allclose(ordered, published, atol=2.0**-12)  # float16
    assert not NF4.symmetric
    assert ordered[7] == 0
    assert (ordered[0], ordered[-1]) == (-1, 1)
    assert np.argmin(np.diff(ordered)) in (6, 7, 8)
    assert np.isnan(NF4.values[1:]).all(), "a damaged type id must not pass for a type"
    assert not NF4.rounded().integers()[1:].any()
