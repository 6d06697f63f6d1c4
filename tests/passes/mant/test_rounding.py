"""Rounding to the chosen types: always the nearest value, and second-order never worse."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mant.rounding import Codec, flattened, gptq, grouped
from graphopt.passes.mant.search import Choice, choose
from graphopt.passes.mant.types import MANT, NF4, TypeTable

seeds, tables = st.integers(0, 2**32 - 1), st.sampled_from([MANT, NF4, MANT.rounded()])


def random_choice(rng: np.random.Generator, table: TypeTable, n: int, groups: int) -> Choice:
    scales = rng.uniform(0.01, 2, (n, groups)).astype(np.float16).astype(np.float32)
    scales[0, 0] = 0
    return Choice(rng.choice(np.array(table.ids, np.uint8), (n, groups)), scales)


@given(seed=seeds, table=tables)
def test_codes_are_those_of_the_nearest_values(seed: int, table: TypeTable) -> None:
    rng = np.random.default_rng(seed)
    choice, w = random_choice(rng, table, 4, 3), rng.standard_normal((4, 3, 32)).astype(np.float32)
    codec = Codec(table, choice)
    codes = codec.encode(w)
    assert codes.dtype == np.uint8
    assert codes.max() < 16
    values = table.values[choice.ids] * choice.scales[..., None]
    distance = np.abs(w[..., None] - values[:, :, None, :]).min(axis=-1)
    np.testing.assert_allclose(np.abs(codec.decode(codes) - w), distance, rtol=1e-5, atol=1e-6)
    column, decoded = codec.column(1, np.ascontiguousarray(w[:, 1, 7]))
    np.testing.assert_array_equal(column, codes[:, 1, 7])
    np.testing.assert_array_equal(decoded, codec.decode(codes)[:, 1, 7])


@given(seed=seeds, table=tables)
def test_values_of_the_grid_stay(seed: int, table: TypeTable) -> None:
    rng = np.random.default_rng(seed)
    codec = Codec(table, random_choice(rng, table, 4, 3))
    values = codec.decode(rng.integers(0, 16, (4, 3, 32)).astype(np.uint8))
    np.testing.assert_array_equal(codec.decode(codec.encode(values)), values)


@given(seed=seeds, n=st.integers(1, 12), k=st.integers(1, 150), table=tables)
def test_gptq_is_never_worse_than_nearest(seed: int, n: int, k: int, table: TypeTable) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, k)) + rng.standard_normal((300, 3)) @ rng.standard_normal((3, k))
    moment = SecondMoment((x.T @ x / 300).astype(np.float32), np.ones(k, bool), 0.01)
    w = rng.standard_t(4, (n, k)).astype(np.float32)
    codec = Codec(table, choose(grouped(w, 64), table))
    codes, error = gptq(w, codec, 64, moment)
    nearest, second = (
        moment.squared_error(w - flattened(codec.decode(c), k))
        for c in (codec.encode(grouped(w, 64)), grouped(codes, 64))
    )
    np.testing.assert_allclose(second, error, rtol=1e-4, atol=1e-9)
    assert (second <= nearest * (1 + 1e-5)).all()


def test_gptq_is_clearly_better_on_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 256)) + 2 * rng.standard_normal((2000, 4)) @ rng.standard_normal((4, 256))
    moment = SecondMoment((x.T @ x / 2000).astype(np.float32), np.ones(256, bool), 0.01)
    w = rng.standard_normal((64, 256)).astype(np.float32)
    codec = Codec(MANT, choose(grouped(w, 64), MANT))
    _, error = gptq(w, codec, 64, moment)
    nearest = moment.squared_error(w - flattened(codec.decode(codec.encode(grouped(w, 64))), 256))
    assert error.sum() < 0.5 * nearest.sum()
