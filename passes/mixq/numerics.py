"""MixQ in numpy: the equations of the paper (SC'24, sections 3 and 4), which ops, bodies and kernels are held to.

X [M, K] activations, W [N, K] weights, O the ordered outlier channels (ascending, padded with -1 to a capacity C):

    X_O      = X[:, O]                                        gathered in 16 bits
    s_x[m]   = max over k not in O of |X[m, k]| / 127         per token
    X_q      = rint(X / s_x), 0 where k in O                  int8
    s_w[n]   = max over k not in O of |W[n, k]| / 127         per output channel
    W_q      = rint(W / s_w), 0 where k in O                  int8
    W_O      = W[:, O]                                        the original columns
    Y        = s_x s_w (X_q W_qᵀ) + X_O W_Oᵀ (+ bias)

4-bit codes are the same with 7 in place of 127. 4-bit weights may share scales in groups along K, which are integers
below one real scale per output channel (as in QServe, Lin et al., 2024, section 4.1):

    W[n, k] ≈ s_w[n] · W_c[n, k],   W_c[n, k] = s_g[k // group, n] · W_q[n, k],   W_q in -7..7,  s_g in 1..18

|W_c| ≤ 126 fits int8, so groups cost neither a float32 accumulator per group nor accuracy: on SmolLM2 the output error
of a layer is 1 % above that of float32 group scales (0.0437 against 0.0434 at group 64 with GPTQ).

Online prediction (section 4) quantizes ahead of detection: the 8-bit codes that O gives tell what exceeds a threshold
τ_m in some token m of the call at hand, and extend O by it:

    τ_m   = max(σ, σ_rms · s_x[m] · sqrt(Σ_k X_q[m, k]² / K))
    r[k]  = max over m of s_x[m] |X_q[m, k]| / τ_m
    O'    = O and the channels with r[k] > 1, the largest first, as far as the capacity goes
    W_O'  = W[:, O], and s_w W_q where a channel is not in O

X is then quantized around O'. Sums of squares of codes are exact integers and the rest is float32 in a fixed order, so
that every implementation predicts the same set. The channels of an earlier call may stand in for O in all but W_O,
which is how a plugin remembers.

Deviations from the released code, all on purpose: outliers never enter a scale; quantization and dequantization use
the same 127; the input is not modified; W_O holds original columns and not dequantized ones.
"""

__all__ = [
    "CAPACITY_STEP",
    "GROUP_SCALE_MAX",
    "ROW_TOLERANCE",
    "excess",
    "extend_columns",
    "gather_outliers",
    "grouped_codes",
    "linear",
    "outlier_mask",
    "pad_indices",
    "predict_outliers",
    "quantize_rows",
    "quantize_weight",
    "select_outliers",
]

import numpy as np

from graphopt.numerics import affine

#: Outlier capacities are multiples of this: the K of one 16-bit tensor-core instruction.
CAPACITY_STEP = 16

#: Largest integer group scale: 18 · 7 = 126 is the largest product that fits int8.
GROUP_SCALE_MAX = affine.Q_MAX[8] // affine.Q_MAX[4]

#: Normalized error ||a - b|| / ||b|| allowed between two evaluations of one op, by activation dtype name. Both sides
#: round the same float32 value to T once (half an ulp each, 2^-11 and 2^-8), and a value that falls on a rounding
#: boundary may move one int8 code, 1/254 of its row's maximum, in few elements.
ROW_TOLERANCE = {"float32": 2e-5, "float16": 1e-3, "bfloat16": 8e-3}


def pad_indices(channels: np.ndarray, capacity: int) -> np.ndarray:
    """Return (capacity,) int32: ``channels`` ascending, then -1; capacity is at least their number."""
    ascending = np.sort(np.asarray(channels, np.int32))
    return np.concatenate([ascending, np.full(capacity - len(ascending), -1, np.int32)])


def outlier_mask(indices: np.ndarray, channels: int) -> np.ndarray:
    """Return (channels,) bool, True where the channel is in ``indices`` ((C,) int32, padded with -1)."""
    mask = np.zeros(channels, bool)
    mask[indices[indices >= 0]] = True
    return mask


def select_outliers(
    absmax: np.ndarray, rms: float, *, rule: str, threshold: float, multiple: float, top: int, capacity: int
) -> np.ndarray:
    """Return the outlier channels, ascending.

    Args:
        absmax: (K,) largest magnitude per channel over the calibration tokens.
        rms: root mean square of the layer's input.
        rule: "threshold" (absmax > threshold, as in LLM.int8()), "rms" (absmax > multiple · rms) or "top" (the
            ``top`` largest).
        capacity: no more than this many; the largest win.
    """
    by_size = np.argsort(-absmax, kind="stable")
    count = {
        "threshold": int(np.count_nonzero(absmax > threshold)),
        "rms": int(np.count_nonzero(absmax > multiple * rms)),
        "top": top,
    }[rule]
    return np.sort(by_size[: min(count, capacity, absmax.size)]).astype(np.int32)


def quantize_rows(y: np.ndarray, indices: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize activations per token, keeping the outlier channels.

    Args:
        y: (..., K), float32, float16 or bfloat16.
        indices: (C,) int32, ascending, padded with -1.
        bits: 8 or 4.

    Returns:
        xq: (..., K) int8, in -127..127 or -7..7, 0 in outlier channels.
        sx: (..., 1) float32; non-finite for a row with NaN or Inf outside the outlier channels.
        xo: (..., C) of y's dtype, 0 in padding.
    """
    mask = outlier_mask(indices, y.shape[-1])
    x = np.where(mask, np.float32(0), y.astype(np.float32))
    sx, inverse = affine.absmax_scale(x, bits)
    return affine.quantize(x, inverse, bits), sx, gather_outliers(y, indices)


def excess(y: np.ndarray, indices: np.ndarray, *, sigma: float, sigma_rms: float) -> np.ndarray:
    """Return (K,) float32: r, by how much the largest value of each channel exceeds its token's threshold.

    It is 0 for the channels of ``indices``, and in tokens that are not finite or whose threshold is 0.

    Args:
        y: (..., K), float32, float16 or bfloat16.
        indices: (C,) int32, padded with -1.
        sigma: absolute threshold.
        sigma_rms: threshold as a multiple of the token's rms, in which channels of ``indices`` count as 0. The larger
            threshold decides.
    """
    channels = y.shape[-1]
    xq, sx, _ = quantize_rows(y.reshape(-1, channels), indices)
    codes = np.abs(xq.astype(np.int32))
    squares = np.sum(codes * codes, axis=-1, keepdims=True, dtype=np.int32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        rms = sx * np.sqrt(squares.astype(np.float32) / np.float32(channels))
        bound = np.maximum(np.float32(sigma), np.float32(sigma_rms) * rms)
        usable = np.isfinite(sx) & (bound > 0)
        ratio = np.where(usable, codes.astype(np.float32) * sx / bound, np.float32(0))
    return np.max(ratio, axis=0, initial=np.float32(0))


def predict_outliers(
    y: np.ndarray, indices: np.ndarray, *, sigma: float, sigma_rms: float, capacity: int
) -> np.ndarray:
    """Return (capacity,) int32: ``indices`` and the channels of y that exceed a threshold, ascending, then -1.

    Where there are too many, the largest `excess` wins, and the first channel among equal ones. Feeding the result of
    one call to the next as ``indices`` is what a plugin that remembers does.

    Args:
        y, indices, sigma, sigma_rms: as in `excess`.
        capacity: at least the number of channels in ``indices``.
    """
    score = excess(y, indices, sigma=sigma, sigma_rms=sigma_rms)
    score[outlier_mask(indices, y.shape[-1])] = np.inf
    largest = np.argsort(-score, kind="stable")[:capacity]
    return pad_indices(largest[score[largest] > 1], capacity)


def extend_columns(wo: np.ndarray, indices: np.ndarray, extended: np.ndarray, dequantized: np.ndarray) -> np.ndarray:
    """Return (N, C'): the outlier columns for ``extended``, original ones where there are some.

    Args:
        wo: (N, C) T, original columns of the channels ``indices``.
        indices: (C,) int32, padded with -1.
        extended: (C',) int32, padded with -1.
        dequantized: (N, C') float32: s_w W_c of the channels ``extended``, anything in padding.
    """
    columns = np.where(extended >= 0, dequantized, np.float32(0)).astype(wo.dtype)
    slot = {int(channel): c for c, channel in enumerate(indices) if channel >= 0}
    for c, channel in enumerate(extended):
        if int(channel) in slot:
            columns[:, c] = wo[:, slot[int(channel)]]
    return columns


def gather_outliers(y: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return (..., C): the channels ``indices`` ((C,) int32) of y (..., K), 0 where the index is -1."""
    return np.where(indices >= 0, np.take(y, indices, axis=-1), np.zeros((), y.dtype)).astype(y.dtype)


def quantize_weight(w: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize a weight per output channel, keeping the outlier columns.

    Args:
        w: (N, K).
        indices: (C,) int32.

    Returns:
        wq (N, K) int8 with zero outlier columns, sw (N,) float32, wo (N, C) of w's dtype.
    """
    wq, sw, wo = quantize_rows(w, indices)
    return wq, sw[:, 0], wo


def grouped_codes(codes: np.ndarray, scales: np.ndarray, group: int) -> np.ndarray:
    """Return W_c[n, k] = s_g[k // group, n] · W_q[n, k] as int8.

    Args:
        codes: (N, K) int8 in -7..7.
        scales: (G, N) int8 in 1..18, G · group at least K.
        group: columns that share a scale.
    """
    columns = codes.shape[1]
    return codes * np.repeat(scales, min(group, columns), axis=0)[:columns].T


def linear(
    xq: np.ndarray,
    sx: np.ndarray,
    xo: np.ndarray,
    wq: np.ndarray,
    sw: np.ndarray,
    wo: np.ndarray,
    bias: np.ndarray,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """Return Y = T(s_x s_w (X_q W_qᵀ) + X_O W_Oᵀ + bias + residual), exact integer sums, float64 otherwise.

    There is one rounding to T.

    Args:
        xq (..., K) int8, sx (..., 1) float32, xo (..., C) T, wq (N, K) int8, sw (N,) float32, wo (N, C) T, bias (N,) T,
            residual (..., N) T.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        integer = xq.astype(np.float64) @ wq.T.astype(np.float64)
        outliers = xo.astype(np.float64) @ wo.T.astype(np.float64)
        y = integer * sx.astype(np.float64) * sw.astype(np.float64) + outliers + bias.astype(np.float64)
        if residual is not None:
            y = y + residual.astype(np.float64)
        return y.astype(np.float32).astype(xo.dtype)
