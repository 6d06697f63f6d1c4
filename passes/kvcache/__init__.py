"""Key-value caches that are updated in place: past ++ new keys -> CachedAttention over a cache of fixed capacity."""

__all__ = ["STAGE", "STATIC", "lower"]

from graphopt.passes.kvcache.lower import STAGE, lower
from graphopt.passes.kvcache.static import STATIC
