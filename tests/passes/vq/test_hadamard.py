"""The transform is orthogonal, and spreads one large channel over its block."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.vq import hadamard


@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 700))
def test_it_keeps_products(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    signs, block = hadamard.random_signs(channels, rng), hadamard.block_of(channels)
    assert block & (block - 1) == 0
    assert len(signs) % block == 0
    assert channels <= len(signs) < channels + hadamard.LEAST_BLOCK
    x, w = rng.standard_normal((3, channels)).astype(np.float32), rng.standard_normal((5, channels)).astype(np.float32)
    turned = hadamard.transform(x, signs, block) @ hadamard.transform(w, signs, block).T
    np.testing.assert_allclose(turned, x @ w.T, rtol=1e-4, atol=1e-4 * np.sqrt(channels))


@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(0, 6), blocks=st.integers(1, 5))
def test_it_is_its_own_inverse_but_for_signs(seed: int, bits: int, blocks: int) -> None:
    rng, block = np.random.default_rng(seed), 4**bits  # whose root is whole
    signs = (2 * rng.integers(0, 2, blocks * block) - 1).astype(np.int8)
    x = rng.integers(-100, 101, (2, len(signs))).astype(np.float32)
    there = hadamard.transform(x, signs, block)
    np.testing.assert_array_equal(hadamard.transform(there, np.ones_like(signs), block) * signs, x)


def test_one_large_channel_becomes_many_small_ones(rng: np.random.Generator) -> None:
    x = np.zeros((1, 128), np.float32)
    x[0, 77] = 1000
    y = hadamard.transform(x, hadamard.random_signs(128, rng), 128)
    np.testing.assert_allclose(np.abs(y), 1000 / np.sqrt(128), rtol=1e-5)


def test_blocks() -> None:
    assert [hadamard.block_of(k) for k in (576, 1536, 4096, 11008, 5)] == [64, 512, 4096, 256, 64]
