"""MANTCachedAttention by its meaning: state from tokens alone, pages, windows, resets, and what may be garbage."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.numerics import cached_attention, layers
from graphopt.passes.mant.cache_codes import decode
from graphopt.passes.mant.cache_numerics import State, dequantize, update
from graphopt.passes.mant.cache_ops import CACHED_ATTENTION
from tests.contract.test_ops import RUNNERS, check, model_of
from tests.support.arrays import FLOATS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant

HEADS, SIZE, GROUP, CAPACITY = 2, 32, 32, 96


def tokens(rng: np.random.Generator, batch: int, count: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (B, S, Hkv, D) with a large channel each."""
    k, v = rng.standard_normal((2, batch, count, HEADS, SIZE))
    k[..., 5] *= 12
    v[..., 9] *= 4
    return k.astype(dtype), v.astype(dtype)


def empty(batch: int, dtype: str = "float32") -> State:
    return State.empty(batch, HEADS, CAPACITY, SIZE, GROUP, FLOATS[dtype])


def garbage(rng: np.random.Generator, batch: int) -> State:
    """Memory that nothing was written to: any bytes, also those of scales that are NaN."""
    return State(*(np.frombuffer(rng.bytes(a.nbytes), a.dtype).reshape(a.shape).copy() for a in empty(batch).arrays()))


def operands(
    rng: np.random.Generator, state: State, start: list[int], seq: int, *, group: int = 3, dtype: str = "float32"
) -> list[np.ndarray]:
    k, v = tokens(rng, len(start), seq, FLOATS[dtype])
    q = (rng.standard_normal((len(start), seq, group * HEADS, SIZE)) * 2).astype(FLOATS[dtype])
    angles = np.tile(rng.uniform(-3, 3, (len(start), seq, SIZE // 2)), 2)
    tables = [f(angles).astype(FLOATS[dtype]) for f in (np.cos, np.sin)]
    center = rng.standard_normal((HEADS, SIZE)).astype(FLOATS[dtype])
    return [q, k, v, *tables, center, *state.arrays(), np.array(start, np.int32)]


def meaning(state: State, length: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """K and V of each sequence, its tokens only."""
    k, v = dequantize(state, np.array(length))
    return [(k[b, :, :n], v[b, :, :n]) for b, n in enumerate(length)]


@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, CAPACITY), max_size=6))
def test_the_state_depends_on_the_tokens_and_not_on_the_calls(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    k, v = tokens(rng, 1, CAPACITY - 5)
    whole = update(garbage(rng, 1), k, v, np.zeros(1, np.int64), "trial")
    parts, bounds = garbage(rng, 1), sorted({0, k.shape[1], *(c for c in cuts if c < k.shape[1])})
    for first, last in itertools.pairwise(bounds):
        parts = update(parts, k[:, first:last], v[:, first:last], np.array([first]), "trial")
    for a, b in zip(meaning(whole, [k.shape[1]])[0], meaning(parts, [k.shape[1]])[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 95, 96])
def test_what_is_stored_resembles_what_was_given(length: int, rng: np.random.Generator) -> None:
    k, v = tokens(rng, 2, length)
    for (keys, values), exact_k, exact_v in zip(
        meaning(update(empty(2), k, v, np.zeros(2, np.int64), "trial"), [length] * 2), k, v, strict=True
    ):
        complete = length // GROUP * GROUP
        assert np.linalg.norm(keys - exact_k.swapaxes(0, 1)) < 0.12 * np.linalg.norm(exact_k)
        difference = values - exact_v.swapaxes(0, 1)
        half_a_step = np.abs(exact_v[complete:]).max(axis=-1, keepdims=True).swapaxes(0, 1) / 254
        assert (np.abs(difference[:, complete:]) <= half_a_step * (1 + 2**-8)).all()
        assert np.linalg.norm(difference[:, :complete]) <= 0.12 * np.linalg.norm(exact_v[:complete])


def test_pages_are_laid_out_as_written_down(rng: np.random.Generator) -> None:
    """Channel d of page p: bytes of its tokens at p·g·D/2 + d·g/2, its word at 2 (p·D + d)."""
    k, v = tokens(rng, 1, GROUP * 2)
    state = update(empty(1), k, v, np.zeros(1, np.int64), "trial")
    _, values = meaning(state, [GROUP * 2])[0]
    head, page, channel = 1, 1, 7
    flat, meta = state.v[0, head].reshape(-1).view(np.uint8), state.v_meta[0, head].reshape(-1).view(np.uint8)
    where = page * GROUP * SIZE // 2 + channel * GROUP // 2
    codes = np.concatenate([flat[where : where + 16] & 15, flat[where : where + 16] >> 4])
    low, high = meta[2 * (page * SIZE + channel) :][:2].astype(np.uint16)
    expected = decode(codes[None], np.array([low | high << 8], np.uint16))[0]
    np.testing.assert_array_equal(values[head, page * GROUP :, channel], expected)


cases = st.fixed_dictionaries(
    {
        "start": st.lists(st.sampled_from([-3, 0, 1, 5, 31, 32, 33, 63, 64, 90, 95, 96, 120]), min_size=1, max_size=3),
        "seq": st.sampled_from([1, 2, 31, 33, 70]),
        "group": st.sampled_from([1, 3]),
    }
)


@settings(max_examples=8, deadline=None)
@given(case=cases, seed=st.integers(0, 99), selector=st.integers(0, 2))
def test_body_equals_evaluator_at_any_start(case: dict[str, Any], seed: int, selector: int) -> None:
    rng = np.random.default_rng(seed)
    batch = len(case["start"])
    k, v = tokens(rng, batch, CAPACITY)
    past = update(empty(batch), k, v, np.zeros(batch, np.int64), "trial")
    inputs = operands(rng, past, case["start"], case["seq"], group=case["group"])
    check(CACHED_ATTENTION, "float32", inputs, scale=0.3, selector=selector)


@pytest.mark.parametrize("dtype", FLOATS)
def test_attention_is_that_of_the_dequantized_cache(dtype: str, rng: np.random.Generator) -> None:
    k, v = tokens(rng, 2, 50, FLOATS[dtype])
    past = update(empty(2, dtype), k, v, np.zeros(2, np.int64), "trial")
    inputs = operands(rng, past, [50, 12], 20, dtype=dtype)
    q, cos, sin, center, start = inputs[0], *inputs[3:6], inputs[-1]
    y, *present = CACHED_ATTENTION.evaluate(*inputs, scale=0.2)
    keys, values = dequantize(State(*present), start + 20, center)
    turned = layers.rotary(q, cos[:, :, None], sin[:, :, None])
    np.testing.assert_array_equal(y, cached_attention.attend(turned, keys, values, start, 0.2))


def test_a_sequence_that_starts_again_forgets_everything(rng: np.random.Generator) -> None:
    """In the middle of a window, beside a sequence that goes on."""
    k, v = tokens(rng, 2, 45)
    used = update(empty(2), k, v, np.zeros(2, np.int64), "trial")
    inputs = operands(rng, used, [0, 45], 7)
    fresh = [
        *inputs[:6],
        *(np.concatenate([e[:1], u[1:]]) for e, u in zip(empty(2).arrays(), used.arrays(), strict=True)),
        inputs[-1],
    ]
    np.testing.assert_array_equal(CACHED_ATTENTION.evaluate(*inputs)[0], CACHED_ATTENTION.evaluate(*fresh)[0])


@pytest.mark.parametrize("runner", RUNNERS)
def test_unwritten_memory_is_never_seen(runner: str, rng: np.random.Generator) -> None:
    """Any bytes, scales of NaN and Inf among them, behind the tokens of a sequence."""
    past = garbage(rng, 2)
    inputs = operands(rng, past, [0, 0], 37)
    expected = CACHED_ATTENTION.evaluate(*inputs[:6], *empty(2).arrays(), inputs[-1])
    y, *present = CACHED_ATTENTION.evaluate(*inputs)
    np.testing.assert_array_equal(y, expected[0])
    proto = model_of(CACHED_ATTENTION, inputs, [y, *present], 21)
    names = [p.name for p in CACHED_ATTENTION.inputs]
    got = RUNNERS[runner](proto, dict(zip(names, inputs, strict=True)))
    np.testing.assert_allclose(got[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_a_value_spoils_its_head_of_its_sequence(value: float, rng: np.random.Generator) -> None:
    inputs = operands(rng, empty(2), [0, 0], 40)
    clean = CACHED_ATTENTION.evaluate(*inputs)[0]
    inputs[2] = inputs[2].copy()
    inputs[2][1, 36, 1, 3] = value  # in the open page: a complete one shares its statistics
    spoilt = CACHED_ATTENTION.evaluate(*inputs)[0]
    assert not np.isfinite(spoilt[1, 36:, 3:]).any()
    np.testing.assert_array_equal(spoilt[0], clean[0])
    np.testing.assert_array_equal(spoilt[1, :, :3], clean[1, :, :3])


def test_tokens_beyond_the_capacity_are_dropped(rng: np.random.Generator) -> None:
    k, v = tokens(rng, 1, CAPACITY + 9)
    full = update(empty(1), k, v, np.zeros(1, np.int64), "trial")
    cut = update(empty(1), k[:, :CAPACITY], v[:, :CAPACITY], np.zeros(1, np.int64), "trial")
    for a, b in zip(full.arrays(), cut.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)
    after = update(full, k[:, :3], v[:, :3], np.array([CAPACITY]), "trial")
    for a, b in zip(after.arrays(), full.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_centering_changes_what_is_stored_and_not_what_is_read(rng: np.random.Generator) -> None:
    """Keys with channels that are large for every token: centered ones lose less."""
    inputs = operands(rng, empty(1), [0], 60)
    inputs[1] = (inputs[1] + 10 * rng.standard_normal((HEADS, SIZE))).astype(np.float32)
    q, k, v, cos, sin, *_, start = inputs
    cos[:], sin[:] = 1, 0
    keys, values = (np.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, 36), (0, 0))) for x in (k, v))
    exact = cached_attention.attend(q, keys, values, start, 0.1)
    errors = []
    for center in (np.zeros((HEADS, SIZE), np.float32), k.mean(axis=(0, 1))):
        inputs[5] = center
        errors.append(np.linalg.norm(CACHED_ATTENTION.evaluate(*inputs, scale=0.1)[0] - exact))
    assert errors[1] < 0.7 * errors[0]


def test_the_first_token_is_exact_until_the_sequence_starts_again(rng: np.random.Generator) -> None:
    k, v = tokens(rng, 2, 50)
    state = update(empty(2), k[:, :40], v[:, :40], np.zeros(2, np.int64), "trial")
    later = update(state, k[:, 40:], v[:, 40:], np.array([40, 0]), "trial")
    for b, first in enumerate((0, 40)):
        keys, values = meaning(later, [1, 1])[b]
        np.testing.assert_array_equal(keys[:, 0], k[b, first])
        np.testing.assert_array_equal(values[:, 0], v[b, first])
