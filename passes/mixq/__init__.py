"""MixQ (SC'24): int8 tensor cores for most channels, 16 bits for the few that carry outliers."""

__all__ = ["OPS", "SCHEME", "quantize_input"]

from graphopt.passes.mixq.lower import SCHEME, quantize_input
from graphopt.passes.mixq.ops import OPS
