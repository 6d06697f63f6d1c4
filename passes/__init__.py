"""The catalogue: what brings graphs into canonical form, the schemes, and the cache formats. Adding one is one line."""

__all__ = ["CACHES", "CANONICALIZE", "OPS", "SCHEMES", "legalize"]

from graphopt.core.cache import CacheFormat
from graphopt.core.op import OpSpec
from graphopt.core.scheme import Scheme
from graphopt.passes import canonicalize, fused, kvcache, mant, mixq, vq
from graphopt.passes.canonicalize import CANONICALIZE, legalize

#: Schemes by name.
SCHEMES: dict[str, Scheme] = {s.name: s for s in (mixq.SCHEME, mant.Mant(mixq.quantize_input), vq.SCHEME)}

#: Formats of the key-value cache by name.
CACHES: dict[str, CacheFormat] = {c.name: c for c in (kvcache.STATIC, mant.CACHE, vq.CODES)}

#: Every custom op: the canonical ones, those of the schemes, those of the cache formats, those between them.
OPS: tuple[OpSpec, ...] = (
    *canonicalize.OPS,
    *(op for scheme in SCHEMES.values() for op in scheme.ops),
    *(op for cache in CACHES.values() for op in cache.ops),
    *fused.OPS,
)
