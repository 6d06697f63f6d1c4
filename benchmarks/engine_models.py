"""Random models in MixQ with planted outlier sets, made without calibration data, and with caches updated in place."""

from pathlib import Path

import numpy as np

from graphopt import compile, ir
from graphopt.core.canonical import linears
from graphopt.core.recipe import Recipe
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES

#: The last opset that TensorRT 8 reads.
OPSET = 17
SEED = 20


def planted(source: Path, outliers: int) -> Statistics:
    """Statistics that give every linear ``outliers`` outlier channels, the same ones for the same width."""
    model = ir.load(source)
    compile.canonicalize(model)
    entries = {}
    for linear in linears(model):
        width = int(linear.weight.shape[1 if linear.transposed else 0])
        absmax = np.ones(width, np.float32)
        absmax[np.random.default_rng([SEED, width]).permutation(width)[:outliers]] = 60.0
        entries[linear.name] = LinearStatistics(absmax, np.full(width, 0.1), tokens=1)
    return Statistics(entries, {})


def optimize(source: Path, target: Path, outliers: int, *, scheme: str = "mixq-w8a8", cache: str | None = None) -> None:
    """Write ``scheme`` of ``source`` with planted outlier channels, without its head, and a cache of kind ``cache``."""
    statistics = planted(source, outliers)
    model = ir.load(source)
    heads = ["*lm_head*"] if any("lm_head" in name for name in statistics.linears) else []
    recipe = Recipe.preset(scheme, SCHEMES, heads)
    if cache:
        recipe = recipe.with_cache(cache, {}, CACHES)
    compile.optimize(model, recipe, statistics)
    ir.save(model, target)


def write_decoder(config: LlamaConfig, source: Path, outliers: int) -> None:
    """Write a random fp16 decoder with ``outliers`` channels that are larger than the others."""
    build_llama(config, RandomWeights(config, SEED, outliers=outliers), source, dtype="float16", opset=OPSET)
