"""M-ANT (HPCA'25): 4-bit groups, of weights and of the cache, that choose among mathematically adaptive types."""

__all__ = ["CACHE", "OPS", "Mant"]

from graphopt.passes.mant.cache_format import CACHE
from graphopt.passes.mant.lower import Mant
from graphopt.passes.mant.ops import OPS
