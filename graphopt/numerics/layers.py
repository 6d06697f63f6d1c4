"""Transformer layers in numpy: float32 inside, one rounding to the activation type T at the end.

Evaluators of the canonical ops and of the schemes' fused producers are written with these, so that a norm means the
same wherever it appears. Products of matrices round where a tensor core does: float32 sums, then T.
"""

__all__ = ["GLUS", "attention", "gated", "gelu", "gelu_tanh", "layer_norm", "linear", "rms_norm", "rotary", "silu"]

import math
from collections.abc import Callable

import numpy as np

#: What a gated activation is called where one input holds gate and up, by the activation's name.
GLUS = {"Silu": "SwiGLU", "Gelu": "GeGLU", "GeluTanh": "GeGLUTanh"}


def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return T(x @ w) or T(T(x @ w) + bias): x (..., K), w (K, N), bias (N,), result (..., N)."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = (x.astype(np.float32) @ w.astype(np.float32)).astype(x.dtype)
        return y if bias is None else (y.astype(np.float32) + bias.astype(np.float32)).astype(x.dtype)


def rms_norm(x: np.ndarray, gamma: np.ndarray, epsilon: float) -> np.ndarray:
    """Return T(x · rsqrt(mean(x²) + ε) · γ) over the last axis: x (..., K), gamma (K,)."""
    v = x.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.float32(1) / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + np.float32(epsilon))
        return (v * scale * gamma.astype(np.float32)).astype(x.dtype)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """Return T((x - mean) · rsqrt(var + ε) · γ + β) over the last axis: x (..., K), gamma and beta (K,)."""
    v = x.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        centered = v - np.mean(v, axis=-1, keepdims=True)
        variance = np.mean(centered * centered, axis=-1, keepdims=True)
        scale = np.float32(1) / np.sqrt(variance + np.float32(epsilon))
        return (centered * scale * gamma.astype(np.float32) + beta.astype(np.float32)).astype(x.dtype)


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Return T(x · cos + rotate_half(x) · sin), rotate_half(x) = concat(-x[D/2:], x[:D/2]) over the last axis.

    x (B, H, S, D); cos and sin broadcastable to it, full width D (Su et al., RoFormer, 2021, eq. 34, halves not pairs).
    """
    half = x.shape[-1] // 2
    v = x.astype(np.float32)
    turned = np.concatenate([-v[..., half:], v[..., :half]], axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        return (v * cos.astype(np.float32) + turned * sin.astype(np.float32)).astype(x.dtype)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Return softmax(T(T(q · scale) kᵀ) + mask) v, softmax in float32 over L, probabilities rounded to T.

    q (B, Hq, S, D), k (B, Hkv, L, D), v (B, Hkv, L, Dv), mask additive and broadcastable to (B, Hq, S, L); Hq a
    multiple of Hkv, query head h reads key head h // (Hq / Hkv). A row whose mask is -inf everywhere gives 0. The scale
    goes to q first because q kᵀ alone leaves the range of float16 where q and k have outliers.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(t, group, axis=1).astype(np.float32) for t in (k, v))
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (q.astype(np.float32) * np.float32(scale)).astype(q.dtype).astype(np.float32)
        scores = (scaled @ keys.swapaxes(-1, -2)).astype(q.dtype).astype(np.float32)
        mask = mask.astype(np.float32)
        scores = scores + np.maximum(mask, np.finfo(np.float32).min)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(q.dtype).astype(np.float32)
        y = (weights @ values).astype(q.dtype)
    alive = mask.max(axis=-1, keepdims=True) > -np.inf
    return np.where(alive, y, np.zeros((), q.dtype))


def silu(x: np.ndarray) -> np.ndarray:
    """Return x · sigmoid(x), float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x / (np.float32(1) + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x/2 · (1 + erf(x/√2)), float32 (erf in float64 by the standard library: numpy has none)."""
    erf = np.frompyfunc(math.erf, 1, 1)
    with np.errstate(invalid="ignore"):
        phi = 1.0 + np.asarray(erf(x.astype(np.float64) / math.sqrt(2.0)), np.float64)
        return (0.5 * x * phi).astype(np.float32)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), float32."""
    inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return (np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))).astype(np.float32)


def gated(activation: Callable[[np.ndarray], np.ndarray], gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return T(activation(gate) · up), float32 inside."""
    return (activation(gate.astype(np.float32)) * up.astype(np.float32)).astype(gate.dtype)
