"""Transformer layers in numpy, against independent formulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.numerics import layers
from tests.support.arrays import FLOATS, activations

HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def error(got: np.ndarray, want: np.ndarray) -> float:
    want = np.asarray(want, np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("dtype", FLOATS)
def test_norms_round_once(dtype: str, rng: np.random.Generator) -> None:
    x = activations(rng, 5, 40, dtype=FLOATS[dtype])
    gamma, beta = (rng.uniform(0.5, 2, 40).astype(FLOATS[dtype]) for _ in range(2))
    wide, g, b = (a.astype(np.float64) for a in (x, gamma, beta))
    rms = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-5) * g
    centered = wide - wide.mean(-1, keepdims=True)
    norm = centered / np.sqrt(centered.var(-1, keepdims=True) + 1e-5) * g + b
    # One half ulp for T, and a few of float32 inside.
    allowed = HALF_ULP[dtype] + 8 * HALF_ULP["float32"]
    assert error(layers.rms_norm(x, gamma, 1e-5), rms) <= allowed
    assert error(layers.layer_norm(x, gamma, beta, 1e-5), norm) <= allowed


def test_rotary_is_a_rotation(rng: np.random.Generator) -> None:
    """Pairs (i, i + D/2) turn by their angle: norms stay, and relative positions are all that products see."""
    angles = rng.uniform(-3, 3, (1, 1, 6, 8))
    cos, sin = (np.concatenate([f(angles)] * 2, -1).astype(np.float32) for f in (np.cos, np.sin))
    x = activations(rng, 2, 3, 6, 16)
    turned = layers.rotary(x, cos, sin)
    complex_x = x[..., :8] + 1j * x[..., 8:]
    expected = complex_x * np.exp(1j * angles)
    assert error(turned, np.concatenate([expected.real, expected.imag], -1)) <= 4 * HALF_ULP["float32"]


@given(group=st.integers(1, 4), seed=st.integers(0, 50))
def test_grouped_attention_repeats_heads(group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((2, h, n, 8)).astype(np.float32) for h, n in ((2 * group, 5), (2, 7), (2, 7)))
    mask = np.where(rng.random((2, 1, 5, 7)) < 0.3, -np.inf, 0).astype(np.float32)
    mask[..., 0] = 0
    got = layers.attention(q, k, v, mask, 0.25)
    scores = np.einsum("bhsd,bhld->bhsl", q * 0.25, np.repeat(k, group, 1), dtype=np.float64) + mask
    p = np.exp(scores - scores.max(-1, keepdims=True))
    want = (p / p.sum(-1, keepdims=True)) @ np.repeat(v, group, 1).astype(np.float64)
    # Sums of 8 and of 7 products, and an exponential.
    assert error(got, want) <= 32 * HALF_ULP["float32"]


def test_rows_without_a_key_are_zero(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((1, 2, n, 4)).astype(np.float32) for n in (3, 5, 5))
    mask = np.zeros((1, 1, 3, 5), np.float32)
    mask[0, 0, 1] = -np.inf
    y = layers.attention(q, k, v, mask, 0.5)
    assert (y[:, :, 1] == 0).all() and np.isfinite(y).all() and (y[:, :, [0, 2]] != 0).all()


def test_attention_of_large_float16_stays_finite(rng: np.random.Generator) -> None:
    """q · k of 64 channels near 60 leaves float16 unless q is scaled first."""
    q, k = (rng.uniform(50, 60, (1, 1, 4, 64)).astype(np.float16) for _ in range(2))
    y = layers.attention(q, k, activations(rng, 1, 1, 4, 8, dtype=np.float16), np.zeros((1, 1, 1, 1)), 1 / 8)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("x", [-40.0, -3.0, -0.5, 0.0, 0.7, 4.0, 60.0])
def test_activations(x: float) -> None:
    value = np.array([x], np.float32)
    assert layers.silu(value)[0] == pytest.approx(x / (1 + math.exp(-x)), rel=1e-6)
    assert layers.gelu(value)[0] == pytest.approx(x / 2 * (1 + math.erf(x / math.sqrt(2))), rel=1e-6)
    assert layers.gelu_tanh(value)[0] == pytest.approx(
        x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), rel=1e-5, abs=1e-7
    )


def test_linear_rounds_after_the_product_and_after_the_bias(rng: np.random.Generator) -> None:
    x, w, bias = (activations(rng, *s, dtype=np.float16) for s in ((5, 24), (24, 8), (8,)))
    product = (x.astype(np.float32) @ w.astype(np.float32)).astype(np.float16)
    assert np.array_equal(layers.linear(x, w), product)
    assert np.array_equal(layers.linear(x, w, bias), product + bias)


def test_gated_rounds_once(rng: np.random.Generator) -> None:
    gate, up = (activations(rng, 5, 24, dtype=np.float16) for _ in range(2))
    wide = layers.silu(gate.astype(np.float32)).astype(np.float64) * up.astype(np.float64)
    assert error(layers.gated(layers.silu, gate, up), wide) <= 2.0**-11
