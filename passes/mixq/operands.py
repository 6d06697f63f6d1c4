"""Operands that quantizing ops hand to linears, and the outlier channels that both are tested on."""

__all__ = ["IDX", "SET", "SX", "XO", "XQ", "XQ4", "example_indices"]

import numpy as np

from graphopt.core.op import Param
from graphopt.passes.mixq import numerics

XQ = Param("xq", "(..., K) int8: codes in -127..127, 0 in outlier channels")
XQ4 = Param(
    "xq4",
    "(..., B) int8: codes in -7..7, 0 in outlier channels, two to a byte (graphopt.numerics.packing): byte 16v + i "
    "holds channel 32v + i in its low nibble and 32v + 16 + i in its high one; B = 16 ceil(K / 32), 0 in padding",
)
IDX = Param("idx", "(C,) int32: outlier channels, ascending, padded with -1; C a multiple of 16, at least 16")
SET = Param(
    "set", "(capacity,) int32: the outlier channels of this call, ascending, padded with -1: idx and what was predicted"
)
SX = Param("sx", "(..., 1) float32: scale of each token")
XO = Param("xo", "(..., C) T: the outlier channels, 0 in padding")


def example_indices(*, known: bool = True) -> np.ndarray:
    """Return the outlier channels of the example rows, without 17 unless ``known``, padded to a capacity of 16."""
    return numerics.pad_indices(np.array([3, 17, 79] if known else [3, 79]), 16)
