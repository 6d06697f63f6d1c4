"""M-ANT (HPCA'25): 4-bit groups that choose among sixteen mathematically adaptive types."""

__all__ = ["OPS", "SCHEME"]

from graphopt.passes.mant.lower import SCHEME
from graphopt.passes.mant.ops import OPS
