"""Comparing models from their files: perplexity and agreement of language models, and values one by one."""

__all__ = ["Comparison", "PerplexityResult", "Tolerance", "compare_models", "perplexity"]

from graphopt.compare.metrics import Tolerance
from graphopt.compare.outputs import Comparison, compare_models
from graphopt.compare.perplexity import PerplexityResult, perplexity
