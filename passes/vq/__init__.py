"""VQ-LLM (HPCA'25): vector-quantized weights and key-value caches."""

__all__ = ["CODES", "OPS", "SCHEME"]

from graphopt.passes.vq.cache import CODES
from graphopt.passes.vq.lower import SCHEME
from graphopt.passes.vq.ops import OPS
