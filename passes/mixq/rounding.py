"""Weights to integer codes: a grid fitted to the weight, then rounding to it, to nearest or second-order (GPTQ).

The grid of output channel n and group g (numerics.py) has the step s_w[n] · s_g[g, n]:

    Ŵ[n, k] = s_w[n] · s_g[k // group, n] · W_q[n, k],   |W_q| <= q

Without clipping the steps are those of the largest weight; with it, smaller ones are tried and the one with the least
Σ_k m_k (w_k - ŵ_k)² wins, m_k the mean square of input channel k (1 without calibration).

GPTQ (Frantar et al., 2023, algorithm 1) rounds column after column and lets the columns that are left make up for the
error, as the second moment M = mean XᵀX says they can. It minimizes E[‖x(W - Ŵ)ᵀ‖²] = Σ_n (W - Ŵ)[n] M (W - Ŵ)[n]ᵀ:

    for k in order:   δ = (w_k - ŵ_k) / U[k, k],   w_j -= U[k, j] δ for the j after k,    M⁻¹ = Uᵀ U

in the order of falling M[k, k], with the update of distant columns delayed by a block. Outlier columns take no part:
they stay exact.
"""

__all__ = ["Grid", "SecondMoment", "fit", "gptq", "nearest"]

from dataclasses import dataclass

import numpy as np

from graphopt.numerics import affine
from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mixq.numerics import GROUP_SCALE_MAX

#: Steps tried per output channel, as shares of the one of the largest weight.
_RATIOS = np.arange(1.0, 0.59, -0.04, dtype=np.float32)
#: Integer group scales tried: the one of the group's largest weight, and this many below it.
_LOWER_SCALES = 9


@dataclass(frozen=True)
class Grid:
    """The values that the codes of a weight (N, K) stand for.

    Attributes:
        scale: (N,) float32, s_w.
        groups: (G, N) int8 in 1..18, s_g; 1 where all columns share one scale.
        group: columns of a group, at least K where there is only one.
        bits: 8 or 4, of the codes.
    """

    scale: np.ndarray
    groups: np.ndarray
    group: int
    bits: int

    def steps(self, columns: np.ndarray) -> np.ndarray:
        """Return the (len(columns), N) float32 steps of some columns."""
        return (self.groups.astype(np.float32) * self.scale)[columns // self.group]

    def rows(self, columns: int) -> np.ndarray:
        """Return the steps of the first ``columns`` columns, (N, columns) float32, or (N, 1) if they are all one."""
        steps = np.ascontiguousarray(self.groups.T) * self.scale[:, None]
        return steps if len(self.groups) == 1 else np.repeat(steps, self.group, axis=1)[:, :columns]

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return Ŵ (N, K) float32 of ``codes`` (N, K)."""
        return codes * self.rows(codes.shape[1])


def fit(w: np.ndarray, bits: int, group: int, *, clip: bool, importance: np.ndarray | None = None) -> Grid:
    """Return the grid of a weight.

    Args:
        w: (N, K) float32, 0 in outlier columns.
        bits: 8 or 4.
        group: columns that share an integer scale; 0 for one scale per output channel.
        clip: whether to search smaller steps than those of the largest weights.
        importance: (K,) weights of the squared errors in that search.
    """
    n, k = w.shape
    weighting = np.ones(k, np.float32) if importance is None else importance.astype(np.float32)
    if group:
        return _fit_groups(w, bits, group, _LOWER_SCALES if clip else 0, weighting)
    amax = np.max(np.abs(w), axis=1, initial=0)
    largest = amax / np.float32(affine.Q_MAX[bits])
    best, scale = np.full(n, np.inf), largest
    for ratio in _RATIOS if clip else ():
        error = np.einsum("nk,k->n", np.square(_residue(w, (largest * ratio)[:, None], bits)), weighting)
        scale, best = np.where(error < best, largest * ratio, scale), np.minimum(error, best)
    return Grid(scale, np.ones((1, n), np.int8), max(k, 1), bits)


def _fit_groups(w: np.ndarray, bits: int, group: int, lower_scales: int, weighting: np.ndarray) -> Grid:
    n, k = w.shape
    count = -(-k // group)
    padded = np.pad(w, ((0, 0), (0, count * group - k))).reshape(n, count, group)
    weighting = np.pad(weighting, (0, count * group - k)).reshape(count, group)
    q = np.float32(affine.Q_MAX[bits])
    amax = np.max(np.abs(padded), axis=2)
    scale = amax.max(axis=1) / (q * GROUP_SCALE_MAX)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 1e-4 is for a quotient that is an integer but for its rounding: it clips a ten-thousandth of a step.
        largest = np.ceil(np.nan_to_num(amax / (q * scale[:, None])) - np.float32(1e-4))
    largest = np.clip(largest, 1, GROUP_SCALE_MAX)
    best, groups = np.full((n, count), np.inf), largest
    for below in range(1 + lower_scales) if lower_scales else ():
        candidate = np.maximum(largest - below, 1)
        error = np.einsum(
            "ngk,gk->ng", np.square(_residue(padded, (scale[:, None] * candidate)[..., None], bits)), weighting
        )
        groups, best = np.where(error < best, candidate, groups), np.minimum(error, best)
    return Grid(scale, np.ascontiguousarray(groups.T.astype(np.int8)), group, bits)


def _codes(w: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
    """Return rint(w / step) clamped to ±q, as float32; 0 where the step is 0 or denormal."""
    q = affine.Q_MAX[bits]
    inverse = np.divide(1, step, where=step >= np.finfo(np.float32).tiny, out=np.zeros_like(step))
    scaled = w * inverse
    return np.clip(np.rint(scaled, out=scaled), -q, q, out=scaled)


def _residue(w: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
    return w - _codes(w, step, bits) * step


def nearest(w: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the codes (N, K) int8 of the values of ``grid`` that are nearest to ``w`` (N, K) float32."""
    return _codes(w, grid.rows(w.shape[1]), grid.bits).astype(np.int8)


def gptq(w: np.ndarray, grid: Grid, moment: SecondMoment) -> tuple[np.ndarray, np.ndarray]:
    """Return codes whose output error is small, and that error, which in no row is larger than that of `nearest`.

    Args:
        w: (N, K) float32, 0 in outlier columns.
        grid: fitted to w.
        moment: of the input.

    Returns:
        codes (N, K) int8, and (N,) float64 as `SecondMoment.squared_error` gives it.
    """
    simple = nearest(w, grid)
    codes = np.zeros_like(simple)
    codes[:, moment.order] = _second_order(w, grid, moment).T
    error, simple_error = (moment.squared_error(w - grid.values(c)) for c in (codes, simple))
    better = error < simple_error
    return np.where(better[:, None], codes, simple), np.where(better, error, simple_error)


def _second_order(w: np.ndarray, grid: Grid, moment: SecondMoment) -> np.ndarray:
    """Return the codes (inner channels, N) float32, in the order of ``moment``."""
    steps = grid.steps(moment.order)
    codes = np.empty((len(moment.order), len(w)), np.float32)

    def rounded(k: int, column: np.ndarray) -> np.ndarray:
        codes[k] = _codes(column, steps[k], grid.bits)
        return np.asarray(codes[k] * steps[k])

    moment.round_columns(w, rounded)
    return codes
