"""Weights as kernels round them for many tokens, held to the exact ones."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.numerics.packing import pack_int4
from graphopt.passes.mant.linear_numerics import linear, pack_types, row_bytes, row_halves
from graphopt.passes.mant.types import MANT, NF4, TYPES, TypeTable

N, K, GROUP = 5, 150, 64


def stored(rng: np.random.Generator, spread: float) -> tuple[np.ndarray, ...]:
    groups = -(-K // GROUP)
    codes = pack_int4(rng.integers(-8, 8, (N, 160)).astype(np.int8))
    scale = 0.1 * np.exp(-rng.uniform(0, spread, (groups, N)))
    scale[:, 2] = 0
    return codes, pack_types(rng.integers(0, TYPES, (groups, N))), scale.astype(np.float16)


def exact(operands: tuple[np.ndarray, ...], table: np.ndarray) -> np.ndarray:
    """W in float32, by products with unit vectors."""
    return linear(np.eye(K, dtype=np.float32), *operands, table, np.zeros(N, np.float32), group=GROUP).T


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 6))
def test_bytes_are_within_half_a_step_of_their_channel(seed: int, spread: float) -> None:
    operands = stored(np.random.default_rng(seed), spread)
    table = MANT.rounded().integers()
    w, row = row_bytes(*operands, table, K, group=GROUP)
    assert w.dtype == np.int8
    assert np.abs(w.astype(int)).max() <= 127
    assert not w[2].any()
    assert row[2] == 0
    error = np.abs(w * row[:, None] - exact(operands, table.astype(np.float32) / 128))
    assert (error <= row[:, None] * 0.5001).all()


def test_one_huge_group_takes_the_others_digits(rng: np.random.Generator) -> None:
    codes, types, scale = stored(rng, 0.0)
    scale[0, 0] = 200
    w, row = row_bytes(codes, types, scale, MANT.rounded().integers(), K, group=GROUP)
    assert np.abs(w[0, :GROUP].astype(int)).max() > 60
    assert not w[0, GROUP:].any()
    assert row[0] > 100 * row[1]


@pytest.mark.parametrize("table", [MANT, NF4], ids=["mant", "nf4"])
@pytest.mark.parametrize(("dtype", "digits"), [(np.float16, 11), (ml_dtypes.bfloat16, 8)])
def test_halves_are_rounded_once(table: TypeTable, dtype: type, digits: int, rng: np.random.Generator) -> None:
    codes, types, scale = stored(rng, 2.0)
    if table is NF4:
        types = np.zeros_like(types)
    rounded = table.values.astype(dtype)
    steps = scale.astype(dtype).astype(np.float16)
    w = row_halves(codes, types, scale, rounded, K, group=GROUP).astype(np.float64)
    want = exact((codes, types, steps), rounded.astype(np.float32))
    assert (np.abs(w - want) <= np.abs(want) * 2.0**-digits + 2.0**-25).all()
