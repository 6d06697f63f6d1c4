"""Randomized Hadamard transform: spreads what is large in few input channels over all channels of a block.

    Q = D H / √block,   D = diag(signs),   H block-diagonal, H[i, j] = (-1)^(number of common bits of i and j)

Q is orthogonal, so X Wᵀ = (X Q)(W Q)ᵀ: the weight is quantized as W Q, whose elements are closer to Gaussian than those
of W, and the linear reads X Q (Chee et al., QuIP, 2023; Tseng et al., QuIP#, 2024).
"""

__all__ = ["LEAST_BLOCK", "block_of", "random_signs", "transform"]

import numpy as np

#: Smallest block: channels are padded with zeros up to a multiple of it.
LEAST_BLOCK = 64


def block_of(channels: int) -> int:
    """Return the largest power of two that divides ``channels``, but at least `LEAST_BLOCK`."""
    return max(LEAST_BLOCK, channels & -channels)


def random_signs(channels: int, rng: np.random.Generator) -> np.ndarray:
    """Return (K',) int8 of 1 and -1, K' the channels padded to a multiple of their block."""
    block = block_of(channels)
    signs: np.ndarray = (2 * rng.integers(0, 2, -(-channels // block) * block) - 1).astype(np.int8)
    return signs


def transform(x: np.ndarray, signs: np.ndarray, block: int) -> np.ndarray:
    """Return x Q: (..., K) float32, padded with zeros to the (K',) of ``signs`` -> (..., K') float32."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, len(signs) - x.shape[-1])]
    y = np.pad(x, padding).astype(np.float32) * signs.astype(np.float32)
    lead, width = y.shape[:-1], 1
    with np.errstate(invalid="ignore", over="ignore"):
        while width < block:
            pairs = y.reshape(*lead, len(signs) // (2 * width), 2, width)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
            y = np.stack([a + b, a - b], axis=-2)
            width *= 2
        return np.asarray(y.reshape(*lead, len(signs)) * np.float32(block**-0.5))
