"""Exporters' many spellings -> one canonical form."""

__all__ = ["CANONICALIZE", "OPS", "legalize"]

from graphopt.core.pipeline import Stage
from graphopt.passes.canonicalize.cleanup import clean_up
from graphopt.passes.canonicalize.fold_constants import fold_constants
from graphopt.passes.canonicalize.legalize import legalize
from graphopt.passes.canonicalize.ops import OPS
from graphopt.passes.canonicalize.share_common import share_common

#: The stages, in order.
CANONICALIZE: tuple[Stage, ...] = (
    Stage("clean-up", clean_up),
    Stage("fold-constants", fold_constants),
    Stage("share-common", share_common),
)
