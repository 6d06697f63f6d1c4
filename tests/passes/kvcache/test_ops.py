"""CachedAttention by its meaning: appending at any start, queries that see what was written before them, overflow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.numerics import cached_attention as numerics
from graphopt.numerics import layers
from graphopt.passes.kvcache.ops import CACHED_ATTENTION
from tests.contract.test_ops import RUNNERS, TOLERANCE, assert_close, check
from tests.support.arrays import FLOATS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant

Arrays = list[np.ndarray]


def inputs(
    rng: np.random.Generator, start: list[int], *, seq: int, capacity: int, group: int, kv_heads: int = 2,
    size: int = 8, dtype: str = "float32", shared: bool = False,
) -> Arrays:  # fmt: skip
    """Return operands with outliers, whose unwritten rows of the cache are NaN."""
    batch, kind = len(start), FLOATS[dtype]
    q, k, v = (rng.standard_normal((batch, seq, n, size)) for n in (group * kv_heads, kv_heads, kv_heads))
    q[..., 1] *= 9
    v[..., -2] *= 30
    angles = np.tile(rng.uniform(-3, 3, (1 if shared else batch, seq, size // 2)), 2)
    past = rng.standard_normal((2, batch, kv_heads, capacity, size))
    for b, first in enumerate(start):
        past[:, b, :, max(first, 0) :] = np.nan
    floats = [x.astype(kind) for x in (q, k, v, np.cos(angles), np.sin(angles), *past)]
    return [*floats, np.array(start, np.int32)]


cases = st.fixed_dictionaries(
    {
        "start": st.lists(st.integers(-2, 14), min_size=1, max_size=3),
        "seq": st.integers(1, 6),
        "capacity": st.integers(1, 12),
        "group": st.sampled_from([1, 3]),
        "shared": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_body_equals_evaluator_at_any_start(case: dict, seed: int) -> None:
    check(CACHED_ATTENTION, "float32", inputs(np.random.default_rng(seed), **case), scale=0.35)


@settings(max_examples=40, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_present_is_past_with_the_new_rows(case: dict, seed: int) -> None:
    q, k, v, cos, sin, past_k, past_v, start = inputs(np.random.default_rng(seed), **case)
    _, present_k, present_v = CACHED_ATTENTION.evaluate(q, k, v, cos, sin, past_k, past_v, start)
    turned = layers.rotary(k, cos[:, :, None], sin[:, :, None])
    for b, first in enumerate(np.maximum(start, 0)):
        for j in range(past_k.shape[2]):
            i = j - first
            new = 0 <= i < k.shape[1]
            np.testing.assert_array_equal(present_k[b, :, j], turned[b, i] if new else past_k[b, :, j])
            np.testing.assert_array_equal(present_v[b, :, j], v[b, i] if new else past_v[b, :, j])


@pytest.mark.parametrize("dtype", FLOATS)
def test_token_by_token_equals_all_at_once(dtype: str, rng: np.random.Generator) -> None:
    """A prompt of seven tokens, or seven calls with one token each: the same cache and the same results."""
    q, k, v, cos, sin, *past, start = inputs(rng, [2, 0], seq=7, capacity=9, group=2, dtype=dtype)
    y, *present = CACHED_ATTENTION.evaluate(q, k, v, cos, sin, *past, start, scale=0.3)
    for i in range(7):
        step = [x[:, i : i + 1] for x in (q, k, v, cos, sin)]
        one, *past = CACHED_ATTENTION.evaluate(*step, *past, start + i, scale=0.3)
        assert_close(one[:, 0], y[:, i], TOLERANCE[dtype], f"token {i}")
    for a, b in zip(past, present, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def test_equals_canonical_attention_over_the_concatenated_cache(rng: np.random.Generator) -> None:
    q, k, v, cos, sin, past_k, past_v, start = inputs(rng, [4, 4], seq=5, capacity=9, group=3)
    y, _, _ = CACHED_ATTENTION.evaluate(q, k, v, cos, sin, past_k, past_v, start, scale=0.25)
    turned = [layers.rotary(x, cos[:, :, None], sin[:, :, None]).swapaxes(1, 2) for x in (q, k)]
    keys = np.concatenate([past_k[:, :, :4], turned[1]], axis=2)
    values = np.concatenate([past_v[:, :, :4], v.swapaxes(1, 2)], axis=2)
    mask = np.where(np.arange(9) <= 4 + np.arange(5)[:, None], 0, -np.inf).astype(np.float32)[None, None]
    expected = layers.attention(turned[0], keys, values, mask, 0.25).swapaxes(1, 2)
    assert_close(y, expected, TOLERANCE["float32"], "y")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("start,seq", [([], 3), ([3, 1], 0), ([3], 1), ([0, 5], 3)])
def test_any_number_of_tokens(start: list[int], seq: int, runner: str, rng: np.random.Generator) -> None:
    check(CACHED_ATTENTION, "float32", inputs(rng, start, seq=seq, capacity=6, group=2), runner)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [2, 6, 10])
def test_odd_head_sizes_and_no_rotary(dtype: str, size: int, rng: np.random.Generator) -> None:
    given = inputs(rng, [3, 0], seq=4, capacity=8, group=2, size=size, dtype=dtype)
    check(CACHED_ATTENTION, dtype, given)
    q, k, v, _, _, *rest = given
    dummies = [np.full((1, 1, size), np.nan, q.dtype)] * 2
    check(CACHED_ATTENTION, dtype, [q, k, v, *dummies, *rest], rotary=0)


def test_scores_beyond_float16_do_not_overflow(rng: np.random.Generator) -> None:
    q, *rest = inputs(rng, [2], seq=3, capacity=6, group=1, size=64, dtype="float16")
    q[..., :4] = 6e4
    y, _, _ = CACHED_ATTENTION.evaluate(q, *rest, scale=0.125, rotary=0)
    assert np.isfinite(y).all()
    check(CACHED_ATTENTION, "float16", [q, *rest], scale=0.125, rotary=0)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_nan_and_inf_stay_in_their_sequence(operand: int, value: float, runner: str, rng: np.random.Generator) -> None:
    given = inputs(rng, [3, 1], seq=4, capacity=9, group=2)
    clean, *_ = CACHED_ATTENTION.evaluate(*given)
    given[operand][1, 2, 1, 0] = value
    poisoned, *_ = CACHED_ATTENTION.evaluate(*given)
    assert_close(poisoned[:1], clean[:1], TOLERANCE["float32"], "the other sequence")
    assert not np.isfinite(poisoned[1, 2:]).all(), "the token and those behind it"
    check(CACHED_ATTENTION, "float32", given, runner)


def test_append_never_reads_or_writes_beyond_the_capacity(rng: np.random.Generator) -> None:
    past, new = rng.standard_normal((3, 2, 4, 8)), rng.standard_normal((3, 6, 2, 8))
    start = np.array([2, 4, 2**31 - 1], np.int32)
    present = numerics.append(past, new, start)
    np.testing.assert_array_equal(present[0, :, 2:], new[0, :2].swapaxes(0, 1))
    np.testing.assert_array_equal(present[1:], past[1:])
