"""The catalogue: what brings graphs into canonical form, and the schemes. Adding a scheme is one line in each list."""

__all__ = ["CANONICALIZE", "OPS", "SCHEMES", "legalize"]

from graphopt.core.op import OpSpec
from graphopt.core.scheme import Scheme
from graphopt.passes import canonicalize, mixq
from graphopt.passes.canonicalize import CANONICALIZE, legalize

#: Schemes by name.
SCHEMES: dict[str, Scheme] = {s.name: s for s in (mixq.SCHEME,)}

#: Every custom op: the canonical ones, then those of the schemes.
OPS: tuple[OpSpec, ...] = (*canonicalize.OPS, *(op for scheme in SCHEMES.values() for op in scheme.ops))
