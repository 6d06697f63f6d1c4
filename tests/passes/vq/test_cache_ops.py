"""VQCachedAttention by its meaning: nearest entries, appending at any start, and CachedAttention of what codes say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.numerics import layers
from graphopt.passes.kvcache.ops import CACHED_ATTENTION as PLAIN
from graphopt.passes.vq.cache_ops import CACHED_ATTENTION, decode_cache, encode_cache
from tests.contract.test_ops import TOLERANCE, assert_close, check
from tests.support.arrays import FLOATS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant


def inputs(
    rng: np.random.Generator, start: list[int], *, seq: int, capacity: int, group: int, vector: int = 2,
    kv_heads: int = 2, size: int = 16, dtype: str = "float32",
) -> list[np.ndarray]:  # fmt: skip
    """Return operands with outliers; rows of the cache that nothing was written to hold any codes."""
    batch, kind = len(start), FLOATS[dtype]
    q, k, v = (rng.standard_normal((batch, seq, n, size)) for n in (group * kv_heads, kv_heads, kv_heads))
    q[..., 1] *= 9
    v[..., -2] *= 30
    angles = np.tile(rng.uniform(-3, 3, (batch, seq, size // 2)), 2)
    past = rng.integers(-128, 128, (2, batch, kv_heads, capacity, size // vector)).astype(np.int8)
    books = rng.standard_normal((2, kv_heads, size // vector, 256, vector)).astype(np.float16)
    floats = [x.astype(kind) for x in (q, k, v, np.cos(angles), np.sin(angles))]
    return [*floats, *past, np.array(start, np.int32), *books]


cases = st.fixed_dictionaries(
    {
        "start": st.lists(st.integers(-2, 14), min_size=1, max_size=3),
        "seq": st.integers(1, 6),
        "capacity": st.integers(1, 12),
        "group": st.sampled_from([1, 3]),
        "vector": st.sampled_from([2, 4, 8, 16]),
    }
)


@settings(max_examples=20, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_body_equals_evaluator_at_any_start(case: dict[str, Any], seed: int) -> None:
    check(CACHED_ATTENTION, "float32", inputs(np.random.default_rng(seed), **case), scale=0.35)


@settings(max_examples=30, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_it_is_cached_attention_of_what_the_codes_stand_for(case: dict[str, Any], seed: int) -> None:
    q, k, v, cos, sin, past_k, past_v, start, *books = inputs(np.random.default_rng(seed), **case)
    y, *present = CACHED_ATTENTION.evaluate(q, k, v, cos, sin, past_k, past_v, start, *books, scale=0.3)
    k = layers.rotary(k, cos[:, :, None], sin[:, :, None])
    past = [decode_cache(p, book) for p, book in zip((past_k, past_v), books, strict=True)]
    new = [
        decode_cache(encode_cache(x, book).swapaxes(1, 2), book).swapaxes(1, 2)
        for x, book in zip((k, v), books, strict=True)
    ]
    turned = layers.rotary(q, cos[:, :, None], sin[:, :, None])
    dummies = np.ones((2, 1, 1, q.shape[3]), np.float32)
    expected = PLAIN.evaluate(turned, *new, *dummies, *past, start, scale=0.3, rotary=0)
    assert_close(y, expected[0], TOLERANCE["float32"], "y")
    for codes, book, values in zip(present, books, expected[1:], strict=True):
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(decode_cache(codes, book), values)


@pytest.mark.parametrize("vector", [2, 4, 8])
def test_codes_are_of_the_nearest_entries_and_the_lowest_of_equal_ones(rng: np.random.Generator, vector: int) -> None:
    book = rng.standard_normal((3, 4, 256, vector)).astype(np.float16)
    book[:, :, 200] = book[:, :, 7]
    x = rng.standard_normal((50, 3, 4 * vector)).astype(np.float32)
    x[0] = book[:, :, 200].reshape(3, -1)
    codes = encode_cache(x, book).view(np.uint8)
    np.testing.assert_array_equal(codes[0], 7)
    distance = np.square(x.reshape(50, 3, 4, 1, vector) - book.astype(np.float32)).sum(axis=-1)
    found = np.take_along_axis(distance, codes[..., None].astype(np.int64), axis=-1)[..., 0]
    np.testing.assert_array_equal(found, distance.min(axis=-1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_has_no_nearest_entry_gets_code_0(rng: np.random.Generator, value: float) -> None:
    book = rng.standard_normal((1, 4, 256, 2)).astype(np.float16)
    x = rng.standard_normal((2, 1, 8)).astype(np.float32)
    clean = encode_cache(x, book)
    x[0, 0, 3] = value
    codes = encode_cache(x, book)
    assert codes[0, 0, 1] == 0
    np.testing.assert_array_equal(np.delete(codes.reshape(-1), 1), np.delete(clean.reshape(-1), 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_token_by_token_equals_all_at_once(dtype: str, rng: np.random.Generator) -> None:
    q, k, v, cos, sin, *past, start, book_k, book_v = inputs(rng, [2, 0], seq=7, capacity=9, group=2, dtype=dtype)
    books = book_k, book_v
    y, *present = CACHED_ATTENTION.evaluate(q, k, v, cos, sin, *past, start, *books, scale=0.3)
    for i in range(7):
        step = [x[:, i : i + 1] for x in (q, k, v, cos, sin)]
        one, *past = CACHED_ATTENTION.evaluate(*step, *past, start + i, *books, scale=0.3)
        assert_close(one[:, 0], y[:, i], TOLERANCE[dtype], f"token {i}")
    for a, b in zip(past, present, strict=True):
        np.testing.assert_array_equal(a, b)
