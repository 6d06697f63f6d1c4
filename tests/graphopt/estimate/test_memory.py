"""Traffic: never less than every operand once, exactly that where all fits, and never more with larger buffers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import RecipeError
from graphopt.estimate.array import Geometry, Product
from graphopt.estimate.memory import Traffic, attention_traffic, buffer_energy, linear_traffic
from graphopt.estimate.parameters import Parameters

PARAMETERS = Parameters.load()
sizes = st.integers(1, 3000)


def with_buffers(factor: float) -> Parameters:
    def scaled(name: str) -> object:
        buffer = getattr(PARAMETERS.buffers, name)
        capacity = buffer.capacity.model_copy(update={"value": buffer.capacity.value * factor})
        return buffer.model_copy(update={"capacity": capacity})

    names = ("weights", "activations", "outputs")
    return PARAMETERS.model_copy(
        update={"buffers": PARAMETERS.buffers.model_copy(update={n: scaled(n) for n in names})}
    )


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes)
def test_every_operand_moves_at_least_once(m: int, n: int, k: int) -> None:
    found = linear_traffic(PARAMETERS, Product(m, n, k, 4, 8), 4.3125)
    assert found.weights >= n * k * 4.3125
    assert found.activations >= m * k * 8
    assert found.outputs == m * n * 16


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes)
def test_larger_buffers_never_move_more(m: int, n: int, k: int) -> None:
    product = Product(m, n, k, 8, 8)
    small, large = (linear_traffic(with_buffers(f), product, 8.0).total for f in (0.25, 4.0))
    assert large <= small


def test_what_fits_moves_once() -> None:
    """64 x 64 x 512 in half buffers of 64, 128 and 64 KiB."""
    found = linear_traffic(PARAMETERS, Product(64, 64, 512, 8, 8, count=3), 8.0)
    assert found == Traffic(weights=3 * 64 * 512 * 8, activations=3 * 64 * 512 * 8, outputs=3 * 64 * 64 * 16)


def test_one_token_reads_every_weight_once() -> None:
    found = linear_traffic(PARAMETERS, Product(1, 4096, 4096, 4, 8), 4.3125)
    assert found.weights == 4096 * 4096 * 4.3125
    assert found.activations == 4096 * 8


def test_least_traffic_by_exhaustion() -> None:
    """All tiles of a problem small enough to try every one, in buffers that hold little of it."""
    parameters, m, n, k = with_buffers(2**-10), 16, 16, 16  # half buffers of 64, 128 and 64 bytes
    best = min(
        w + a
        for tn in range(1, n + 1)
        for tm in range(1, m + 1)
        for tk in range(1, k + 1)
        if tn * tk * 8 <= 512 and tm * tk * 8 <= 1024 and tn * tm * 32 <= 512
        for w, a in (
            (n * k * 8 * (1 if tk == k else -(-m // tm)), m * k * 8 * -(-n // tn)),
            (n * k * 8 * -(-m // tm), m * k * 8 * (1 if tk == k else -(-n // tn))),
        )
    )
    found = linear_traffic(parameters, Product(m, n, k, 8, 8), 8.0)
    assert found.weights + found.activations == best


def test_shared_heads_read_the_cache_once() -> None:
    common = {"queries": 1, "keys": 4096, "key_size": 128, "value_size": 128, "activation": 8, "cache": 4.3125}
    one, shared = (attention_traffic(PARAMETERS, heads=h, **common) for h in (1, 8))
    assert one.cache == shared.cache == 4096 * 256 * 4.3125
    assert shared.activations == 8 * one.activations


def test_long_prompts_read_the_cache_again() -> None:
    """128 queries of 128 channels in 32-bit sums fill half of the output buffer."""
    common = {"keys": 1024, "heads": 1, "key_size": 128, "value_size": 128, "activation": 8, "cache": 4.0}
    once, twice = (attention_traffic(PARAMETERS, queries=q, **common).cache for q in (128, 129))
    assert twice == 2 * once


def test_buffers_that_hold_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="too small for one element"):
        linear_traffic(with_buffers(2**-17), Product(1, 1, 1, 8, 8), 8.0)
    with pytest.raises(RecipeError, match="too small for one query"):
        attention_traffic(
            with_buffers(2**-10), queries=1, keys=1, heads=1, key_size=128, value_size=128, activation=16, cache=16
        )


def test_wide_arrays_read_activations_less_often() -> None:
    product, filled = Product(64, 64, 64, 8, 8), Traffic()
    narrow, wide = (Geometry(16, c, {"8x8": 1.0}) for c in (16, 64))
    energies = [buffer_energy(PARAMETERS, shape, product, 8.0, filled) for shape in (narrow, wide)]
    saved = 64 * 64 * 8 * (4 - 1) * PARAMETERS.buffers.activations.read.value
    assert energies[0] - energies[1] == pytest.approx(saved)
