"""Operands of MixQLinear on the GPU, its result in float64, and how far a kernel may be from it."""

import math

import torch

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST_STEP = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
# Of the terms' magnitude, per float32 operation: rounding costs 2^-24, truncation in a tensor core up to 4 times that.
FLOAT32_ERROR = 2.0**-22


def quantize(values: torch.Tensor, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [R, K], 0 in `channels`, and scales float32 [R] of float32 `values` [R, K]."""
    kept = values.clone()
    kept[:, channels] = 0
    amax = kept.abs().amax(dim=1)
    inverse = torch.where(amax > 0, 127 / amax, torch.zeros_like(amax))
    return torch.round(kept * inverse[:, None]).to(torch.int8), amax / 127


def planted(m: int, n: int, k: int, capacity: int, dtype: torch.dtype, seed: int) -> tuple[dict, dict]:
    """Operands of a layer whose activations are 20 times larger in min(capacity, K) - 3 random channels."""
    torch.manual_seed(seed)
    channels = torch.randperm(k, device="cuda")[: max(1, min(capacity, k) - 3)].sort().values
    x = torch.randn(m, k, device="cuda") * (0.1 + torch.rand(m, 1, device="cuda"))
    x[:, channels] *= 20
    weight = torch.randn(n, k, device="cuda") / math.sqrt(k) * (0.1 + torch.rand(n, 1, device="cuda"))
    xq, sx = quantize(x, channels)
    wq, sw = quantize(weight, channels)
    xo, wo = (torch.zeros(rows, capacity, device="cuda", dtype=dtype) for rows in (m, n))
    xo[:, : len(channels)] = x[:, channels].to(dtype)
    wo[:, : len(channels)] = weight[:, channels].to(dtype)
    bias = torch.randn(n, device="cuda").to(dtype)
    return {"xq": xq, "sx": sx, "xo": xo}, {"wq": wq, "sw": sw, "wo": wo, "bias": bias}


def reference(x: dict, w: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """y in float64 (the integer sums are exact in it) and the sum of its terms' magnitudes, both [M, N]."""
    sums = x["xq"].double() @ w["wq"].double().T
    codes = x["sx"].double()[:, None] * w["sw"].double() * sums
    bias = w["bias"].double()
    y = codes + x["xo"].double() @ w["wo"].double().T + bias
    return y, codes.abs() + x["xo"].double().abs() @ w["wo"].double().abs().T + bias.abs()


def bound(exact: torch.Tensor, magnitude: torch.Tensor, w: dict) -> torch.Tensor:
    """What rounding to T, and a conversion, two scalings, C/16 additions and a bias in float32, may change."""
    capacity, dtype = w["wo"].shape[1], w["wo"].dtype
    return UNIT_ROUNDOFF[dtype] * exact.abs() + (4 + capacity / 16) * FLOAT32_ERROR * magnitude + SMALLEST_STEP[dtype]


def excess(y: torch.Tensor, x: dict, w: dict) -> float:
    """Largest error of y as a multiple of its bound; NaN counts as infinite."""
    exact, magnitude = reference(x, w)
    return ((y.double() - exact).abs() / bound(exact, magnitude, w)).nan_to_num(nan=math.inf).max().item()


def describe(y: torch.Tensor, x: dict, w: dict) -> str:
    """Which rows, columns and values of y are wrong, and whether one of its two products alone explains them."""
    exact, magnitude = reference(x, w)
    allowed = bound(exact, magnitude, w)
    wrong = ~((y.double() - exact).abs() <= allowed)
    rows, columns = wrong.any(1).nonzero().flatten().tolist(), wrong.any(0).nonzero().flatten().tolist()
    parts = {
        "without outliers": exact - x["xo"].double() @ w["wo"].double().T,
        "outliers and bias only": x["xo"].double() @ w["wo"].double().T + w["bias"].double(),
        "without bias": exact - w["bias"].double(),
    }
    loose = 4 * allowed + 1e-3
    alike = [label for label, part in parts.items() if ((y.double() - part).abs() <= loose).double().mean() > 0.9]
    r, c = wrong.nonzero()[0].tolist()
    return (
        f"{int(wrong.sum())} of {wrong.numel()} wrong, {int(y.isnan().sum())} NaN; rows {rows[:12]}..{rows[-1]} "
        f"({len(rows)}), columns {columns[:12]}..{columns[-1]} ({len(columns)}); y[{r},{c}]={y[r, c].item():.6g} "
        f"not {exact[r, c].item():.6g}; looks like: {alike}"
    )
