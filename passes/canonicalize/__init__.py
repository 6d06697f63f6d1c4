"""Exporters' many spellings -> one canonical form."""

__all__ = ["CANONICALIZE", "OPS", "legalize"]

from graphopt.core.op import OpSpec
from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.ir.model import Model

#: The stages, in order.
CANONICALIZE: tuple[Stage, ...] = ()

#: The canonical ops.
OPS: tuple[OpSpec, ...] = ()


def legalize(model: Model, report: Report) -> None:
    """Turn canonical ops that no scheme lowered back into standard operators."""
