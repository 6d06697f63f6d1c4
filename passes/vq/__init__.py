"""VQ-LLM (HPCA'25): vector-quantized weights."""

__all__ = ["OPS", "SCHEME"]

from graphopt.passes.vq.lower import SCHEME
from graphopt.passes.vq.ops import OPS
