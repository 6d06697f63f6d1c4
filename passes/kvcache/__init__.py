"""Key-value caches that are updated in place: past ++ new keys -> CachedAttention over a cache of fixed capacity."""

__all__ = ["STATIC", "lower"]

from graphopt.passes.kvcache.lower import lower
from graphopt.passes.kvcache.static import STATIC
