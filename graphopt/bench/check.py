"""What the suites check of a linear before they time it: some tokens of Y, against a product in high precision."""

__all__ = ["SIZES", "row_error", "some_rows"]

from typing import TYPE_CHECKING

from graphopt.bench.capi import torch_with_cuda

if TYPE_CHECKING:
    from torch import Tensor

#: N and K of the weights that every suite times.
SIZES = ((4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672))
#: All of them would take longer than what is measured.
_CHECKED_ROWS = 64


def some_rows(count: int) -> "Tensor":
    """Return numbers of rows below ``count``, the first and the last among them: all, or as many as are checked."""
    return torch_with_cuda().linspace(0, count - 1, min(count, _CHECKED_ROWS), device="cuda").round().long()


def row_error(y: "Tensor", exact: "Tensor") -> float:
    """Return the largest error of a row of y [M, N] against ``exact``, in norms of its row."""
    return float(((y - exact).norm(dim=1) / exact.norm(dim=1)).max())
