"""Real-time groups: the scale's format, the selectors against each other and against NF4."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.mant import cache_codes
from graphopt.passes.mant.cache_codes import SELECTORS, decode, encode
from graphopt.passes.mant.rounding import Codec
from graphopt.passes.mant.search import choose
from graphopt.passes.mant.types import KV_STEPS, MANT_KV, NF4

DRAWS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.standard_normal((2000, 64)),
    "laplace": lambda rng: rng.laplace(size=(2000, 64)),
    "student-t4": lambda rng: rng.standard_t(4, (2000, 64)),
    "uniform": lambda rng: rng.uniform(-1, 1, (2000, 64)),
}


def test_every_finite_scale_is_its_own_number() -> None:
    values = cache_codes.scale_values()
    finite = np.isfinite(values)
    np.testing.assert_array_equal(cache_codes.encode_scale(values[finite]), np.arange(2048)[finite])
    assert not np.isfinite(values[cache_codes.encode_scale(np.array([np.nan, np.inf, 1e9], np.float32))]).any()


@given(st.floats(2**-14, 6e4))
def test_scales_keep_seven_bits(scale: float) -> None:
    stored = cache_codes.scale_values()[cache_codes.encode_scale(np.array([scale], np.float32))]
    assert abs(stored[0] - scale) <= scale * 2**-7


def test_a_word_is_a_float16_whose_last_bits_are_the_type() -> None:
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    _, words = encode(x, "trial")
    ids, scales = cache_codes.decode_scale(words)
    np.testing.assert_array_equal(scales, (words & np.uint16(0xFFF0)).view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(ids, words & 15)
    pairs = cache_codes.words_to_bytes(words).view(np.uint8)
    np.testing.assert_array_equal(words, pairs[:, 0] + 256 * pairs[:, 1].astype(np.uint16))


@given(seed=st.integers(0, 2**32 - 1), selector=st.sampled_from(SELECTORS), size=st.floats(1e-3, 1e3))
def test_codes_are_those_of_the_nearest_values(seed: int, selector: str, size: float) -> None:
    x = (np.random.default_rng(seed).standard_t(4, (5, 32)) * size).astype(np.float32)
    codes, words = encode(x, selector)
    ids, scales = cache_codes.decode_scale(words)
    nearest = np.abs(x[..., None] - (MANT_KV.values[ids] * scales[:, None])[:, None, :]).min(axis=-1)
    np.testing.assert_allclose(np.abs(decode(codes, words) - x), nearest, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("name", DRAWS)
def test_the_trial_beats_nf4_and_the_variance_rules(name: str) -> None:
    x = DRAWS[name](np.random.default_rng(0)).astype(np.float32)

    def error(y: np.ndarray) -> float:
        return float(np.mean(np.square(y - x).sum(axis=1) / np.square(x).sum(axis=1)))

    codec = Codec(NF4, choose(x[:, None], NF4))
    nf4 = error(codec.decode(codec.encode(x[:, None]))[:, 0])
    trial, variance3, variance8 = (error(decode(*encode(x, s))) for s in SELECTORS)
    assert trial < 0.95 * nf4
    assert trial < min(variance3, variance8)
    searched = Codec(MANT_KV, choose(x[:, None], MANT_KV))
    assert trial < 1.08 * error(searched.decode(searched.encode(x[:, None]))[:, 0]), "far from the best of sixteen"


def test_the_variance_rules_are_those_of_the_paper() -> None:
    """Types by variance of x / max|x|: a spike among small values, a bell, and two-valued groups."""
    spike, bell, flat = np.full(64, 0.01), np.random.default_rng(3).standard_normal(64), np.resize([1.0, -0.9], 64)
    spike[5] = -1
    x = np.stack([spike, bell, flat]).astype(np.float32)
    ids, _ = cache_codes.decode_scale(encode(x, "variance3")[1])
    assert [*ids] == [KV_STEPS.index(0), KV_STEPS.index(25), 15]


#: Bounds of the variance and the coefficient below each and above the last; None is INT4, as the authors have them.
PUBLISHED = {
    "variance3": ((0.05, 0.25), (0, 25, None)),
    "variance8": ((0.0417, 0.0797, 0.122, 0.1368, 0.1446, 0.1528, 0.1611), (0, 20, 40, 60, 80, 100, 120, None)),
}


def of_variance(variance: float) -> np.ndarray:
    """A group of 64 whose largest magnitude is 1 and whose values have this variance (of a sample)."""
    low, high = 0.0, 1.0
    for _ in range(60):
        x = np.resize([(low + high) / 2, -(low + high) / 2], 64)
        x[0] = 1
        low, high = ((low + high) / 2, high) if x.var(ddof=1) < variance else (low, (low + high) / 2)
    return x


@pytest.mark.parametrize("selector", PUBLISHED)
def test_bounds_of_the_variance_are_the_published_ones(selector: str) -> None:
    bounds, steps = PUBLISHED[selector]
    types = [15 if a is None else KV_STEPS.index(a) for a in steps]
    for i, bound in enumerate(bounds):
        x = np.stack([of_variance(bound * share) for share in (0.999, 1.001)]).astype(np.float32) * 7
        ids, _ = cache_codes.decode_scale(encode(x, selector)[1])
        assert [*ids] == types[i : i + 2]


@pytest.mark.parametrize("selector", SELECTORS)
def test_groups_that_are_zero_huge_or_not_finite(selector: str) -> None:
    x = np.zeros((5, 64), np.float32)
    x[1, 7], x[2] = 3e4, 1e-6
    x[3, 9], x[4, 9] = np.nan, -np.inf
    y = decode(*encode(x, selector))
    assert not y[0].any()
    assert y[1, 7] == pytest.approx(3e4, rel=0.01)
    np.testing.assert_allclose(y[2], x[2], rtol=0.2)
    assert not np.isfinite(y[3:]).any()
