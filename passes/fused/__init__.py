"""Norms and activations between plugin ops, in one launch each."""

__all__ = ["OPS", "STAGE", "lower"]

from graphopt.passes.fused.lower import STAGE, lower
from graphopt.passes.fused.ops import OPS
