"""Symmetric absmax quantization, the primitive under every integer scheme.

    s = max|x| / q,   x_q = rint(x · (q / max|x|)),   x ≈ s · x_q        with q = 127 for 8 bits and 7 for 4

The scale and its inverse are both computed from the maximum by one float32 division each, so that numpy, ONNX Runtime
and a GPU agree to the last bit. Rounding is to nearest, ties to even.
"""

__all__ = ["Q_MAX", "absmax_scale", "quantize"]

import numpy as np

#: Largest code magnitude by bit width. Codes are symmetric: -128 and -8 are never used.
Q_MAX = {8: 127, 4: 7}


def absmax_scale(x: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(s, 1/s)`` over the last axis.

    Args:
        x: (..., K) float32.
        bits: 8 or 4.

    Returns:
        s: (..., 1) float32; NaN where a row holds NaN, Inf where its maximum is Inf, 0 where the row is all zeros.
        inverse: (..., 1) float32, q / max|x|; 0 where the row is all zeros.
    """
    q = np.float32(Q_MAX[bits])
    amax = np.max(np.abs(x), axis=-1, keepdims=True, initial=np.float32(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(amax == 0, np.float32(0), q / amax)
    return (amax / q).astype(np.float32), inverse.astype(np.float32)


def quantize(x: np.ndarray, inverse: np.ndarray, bits: int = 8) -> np.ndarray:
    """Return rint(x · inverse) as int8, clamped to ±q; non-finite values become 0 (their row's scale is non-finite).

    Args:
        x: (..., K) float32.
        inverse: broadcastable to x, float32.
    """
    q = Q_MAX[bits]
    with np.errstate(invalid="ignore"):
        codes = np.rint(x * inverse)
    return np.clip(np.nan_to_num(codes, nan=0.0, posinf=0.0, neginf=0.0), -q, q).astype(np.int8)
