"""Grids and rounding: never worse than what they replace, whatever the weight, the groups and the statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import CalibrationError
from graphopt.numerics.affine import Q_MAX
from graphopt.passes.mixq import rounding
from graphopt.passes.mixq.numerics import GROUP_SCALE_MAX
from graphopt.passes.mixq.rounding import Grid, SecondMoment

#: What float32 leaves of a sum of squares of a few hundred terms.
ROUNDING = 1 + 2.0**-18

seeds, rows, columns = st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 150)
bits_, groups_ = st.sampled_from([4, 8]), st.sampled_from([0, 32, 64])


def heavy_tailed(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Weights with rare large values, rows of very different sizes and, at times, a row or group of zeros."""
    w = rng.standard_t(4, (n, k)) * 10.0 ** rng.uniform(-3, 1, (n, 1))
    if rng.random() < 0.3:
        w[rng.integers(n)] = 0
    if rng.random() < 0.3:
        w[rng.integers(n), : k // 2] = 0
    return w.astype(np.float32)


def correlated(rng: np.random.Generator, k: int, tokens: int = 400) -> np.ndarray:
    """Second moment of inputs with a few strong common directions and channels of different sizes."""
    common = rng.standard_normal((tokens, 4)) @ rng.standard_normal((4, k))
    x = (rng.standard_normal((tokens, k)) + common) * 10.0 ** rng.uniform(-1, 1, k)
    return (x.T @ x / tokens).astype(np.float32)


def weighted_error(w: np.ndarray, grid: Grid, importance: np.ndarray) -> np.ndarray:
    difference = w - grid.values(rounding.nearest(w, grid))
    return (np.square(difference.astype(np.float64)) * importance).sum(axis=1)


@given(seed=seeds, n=rows, k=columns, bits=bits_)
def test_nearest_is_within_half_a_step(seed: int, n: int, k: int, bits: int) -> None:
    w = heavy_tailed(np.random.default_rng(seed), n, k)
    grid = rounding.fit(w, bits, 0, clip=False)
    codes = rounding.nearest(w, grid)
    assert codes.dtype == np.int8
    assert np.abs(codes).max(initial=0) <= Q_MAX[bits]
    np.testing.assert_array_equal(grid.scale, np.abs(w).max(axis=1) / np.float32(Q_MAX[bits]))
    assert (np.abs(w - grid.values(codes)) <= grid.scale[:, None] * (0.5 + Q_MAX[bits] * 2.0**-22)).all()


@given(seed=seeds, n=rows, k=columns, group=st.sampled_from([32, 64, 128]))
def test_group_scales_are_small_integers_that_clip_nothing(seed: int, n: int, k: int, group: int) -> None:
    w = heavy_tailed(np.random.default_rng(seed), n, k)
    grid = rounding.fit(w, 4, group, clip=False)
    assert grid.groups.shape == (-(-k // group), n)
    assert grid.groups.min() >= 1
    assert grid.groups.max() <= GROUP_SCALE_MAX
    codes = rounding.nearest(w, grid)
    steps = grid.rows(k)
    assert steps.shape == (n, 1 if k <= group else k)
    # A ten-thousandth of a step may be clipped on top of the half that rounding takes.
    assert (np.abs(w - grid.values(codes)) <= steps * (0.5 + 2e-3)).all()
    assert (np.abs(codes.astype(np.int32) * np.repeat(grid.groups.T, group, axis=1)[:, :k]) <= 127).all()


@given(seed=seeds, n=rows, k=columns, bits=bits_)
def test_searched_scales_are_never_worse(seed: int, n: int, k: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    w, importance = heavy_tailed(rng, n, k), rng.uniform(0.01, 10, k).astype(np.float32)
    for group in (0, 64) if bits == 4 else (0,):
        plain, searched = (rounding.fit(w, bits, group, clip=clip, importance=importance) for clip in (False, True))
        a, b = weighted_error(w, searched, importance), weighted_error(w, plain, importance)
        assert (a <= b * ROUNDING + 1e-30).all()


def test_searched_scales_are_clearly_better_on_weights_with_rare_large_values() -> None:
    w = np.random.default_rng(0).standard_t(4, (64, 512)).astype(np.float32)
    one = np.ones(512)
    for group, share in ((0, 0.7), (64, 0.9)):
        plain, searched = (weighted_error(w, rounding.fit(w, 4, group, clip=c), one).sum() for c in (False, True))
        assert searched < share * plain


def test_groups_are_clearly_better_on_weights_of_varying_size() -> None:
    rng = np.random.default_rng(1)
    w = (rng.standard_normal((32, 512)) * np.repeat(rng.uniform(0.1, 1, 8), 64)).astype(np.float32)
    one = np.ones(512)
    whole, grouped = (weighted_error(w, rounding.fit(w, 4, group, clip=True), one).sum() for group in (0, 64))
    assert grouped < 0.8 * whole


def test_integer_group_scales_cost_next_to_nothing() -> None:
    """Against a real scale for each group; this is what makes exact int32 sums possible (numerics.py)."""
    w = np.random.default_rng(2).standard_t(5, (128, 512)).astype(np.float32)
    integer = weighted_error(w, rounding.fit(w, 4, 64, clip=True), np.ones(512)).sum()
    real = sum(
        weighted_error(part, rounding.fit(part, 4, 0, clip=True), np.ones(64)).sum() for part in np.split(w, 8, axis=1)
    )
    assert integer < 1.08 * real


@given(seed=seeds, n=rows, k=st.integers(1, 200), bits=bits_, group=groups_, share=st.sampled_from([0.0, 0.1, 1.0]))
def test_gptq_is_never_worse_than_nearest(seed: int, n: int, k: int, bits: int, group: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    inner = rng.random(k) >= share
    w = heavy_tailed(rng, n, k) * inner
    moment = SecondMoment(correlated(rng, k), inner, 0.01)
    grid = rounding.fit(w, bits, group if bits == 4 else 0, clip=True)
    codes, error = rounding.gptq(w, grid, moment)
    assert codes.shape == (n, k)
    assert not codes[:, ~inner].any()
    assert np.abs(codes).max(initial=0) <= Q_MAX[bits]
    errors = [moment.squared_error(w - grid.values(c)) for c in (codes, rounding.nearest(w, grid))]
    assert (errors[0] <= errors[1] * ROUNDING).all()
    np.testing.assert_allclose(error, errors[0], rtol=1e-5)


@pytest.mark.parametrize(("bits", "group"), [(4, 0), (4, 64), (8, 0)])
def test_gptq_is_far_better_than_nearest_on_correlated_inputs(bits: int, group: int) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((48, 256)).astype(np.float32)
    inner = rng.random(256) > 0.05
    w *= inner
    moment = SecondMoment(correlated(rng, 256), inner, 0.01)
    grid = rounding.fit(w, bits, group, clip=False)
    nearest, (second_order, _) = rounding.nearest(w, grid), rounding.gptq(w, grid, moment)
    first, second = (moment.squared_error(w - grid.values(codes)).sum() for codes in (nearest, second_order))
    assert second < 0.5 * first


def test_gptq_is_the_textbook_algorithm() -> None:
    """Column by column, each time solving for what the columns that are left should be."""
    rng = np.random.default_rng(4)
    n, k = 6, 90  # more than one block
    w, m = rng.standard_normal((n, k)).astype(np.float32), correlated(rng, k).astype(np.float64)
    grid = rounding.fit(w, 4, 32, clip=False)
    got = rounding._second_order(w, grid, SecondMoment(m.astype(np.float32), np.ones(k, bool), 0.05))
    order = np.argsort(-np.diagonal(m.astype(np.float32)), kind="stable")
    m[np.diag_indices(k)] += 0.05 * np.trace(m) / k
    left = w.astype(np.float64)
    steps, differing = grid.rows(k), 0
    for i, column in enumerate(order):
        code = np.clip(np.rint(left[:, column] / steps[:, column]), -7, 7)
        # A value on the boundary of two codes may go either way in float32: follow it, to be able to compare the rest.
        distance = np.abs(left[:, column] / steps[:, column] - got[i])
        differing += np.count_nonzero(got[i] != code)
        assert (distance[got[i] != code] < 0.5 + 1e-3).all()
        error = left[:, column] - got[i] * steps[:, column]
        rest = order[i + 1 :]
        # The move of the rest that leaves the smallest output error.
        left[:, rest] += np.outer(error, np.linalg.solve(m[np.ix_(rest, rest)], m[rest, column]))
    assert differing <= 2


def test_few_tokens_and_dead_channels_are_no_obstacle() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    x[:, :10] = 0
    w = rng.standard_normal((5, 40)).astype(np.float32)
    grid = rounding.fit(w, 4, 0, clip=False)
    for moment in (x.T @ x / 3, np.zeros((40, 40), np.float32)):
        prepared = SecondMoment(moment, np.ones(40, bool), 0.01)
        codes, _ = rounding.gptq(w, grid, prepared)
        np.testing.assert_array_equal(codes[:, :10], rounding.nearest(w, grid)[:, :10])
        assert np.isfinite(prepared.squared_error(w - grid.values(codes))).all()


def test_what_is_no_second_moment_is_refused() -> None:
    m = np.random.default_rng(6).standard_normal((20, 20)).astype(np.float32)
    with pytest.raises(CalibrationError, match="not positive semi-definite; make them again"):
        SecondMoment(m, np.ones(20, bool), 0.01)


def test_tiny_weights_do_not_overflow() -> None:
    w = np.full((2, 8), 1e-42, np.float32)
    w[1] = 1e-30
    for group in (0, 64):
        grid = rounding.fit(w, 4, group, clip=True)
        codes = rounding.nearest(w, grid)
        np.testing.assert_array_equal(codes, [[0] * 8, [7] * 8])
        np.testing.assert_allclose(grid.values(codes)[1], w[1], rtol=1e-6)
