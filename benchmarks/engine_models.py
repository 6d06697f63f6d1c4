"""Random models in the schemes' forms, made without calibration data: planted outlier sets, caches updated in place.

Codes are random where `optimize` is asked for ``random_codes``: a kernel takes as long with them as with those that a
search of minutes finds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from graphopt import compile, ir
from graphopt.core.canonical import LinearView, linears
from graphopt.core.recipe import Recipe
from graphopt.core.statistics import AttentionStatistics, LinearStatistics, Statistics
from graphopt.ir import kv_cache
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.numerics.packing import packed_bytes
from graphopt.passes import CACHES, SCHEMES
from graphopt.passes.mant import lower as mant_lower
from graphopt.passes.mant import weight as mant_weight
from graphopt.passes.mant.config import MantConfig
from graphopt.passes.mixq import lower as mixq_lower
from graphopt.passes.mixq import weight as mixq_weight
from graphopt.passes.mixq.config import MixQConfig
from graphopt.passes.vq import cache as vq_cache
from graphopt.passes.vq import lower as vq_lower
from graphopt.passes.vq import weight as vq_weight
from graphopt.passes.vq.config import VQConfig
from graphopt.passes.vq.numerics import row_bytes

#: The last opset that TensorRT 8 reads.
OPSET = 17
SEED = 20


def planted(source: Path, outliers: int, config: LlamaConfig | None = None) -> Statistics:
    """Statistics that give every linear ``outliers`` outlier channels, the same ones for the same width.

    With the ``config`` of a decoder, its caches have a few random keys and values, too.
    """
    model = ir.load(source)
    compile.canonicalize(model)
    entries = {}
    for linear in linears(model):
        width = int(linear.weight.shape[1 if linear.transposed else 0])
        absmax = np.ones(width, np.float32)
        absmax[np.random.default_rng([SEED, width]).permutation(width)[:outliers]] = 60.0
        entries[linear.name] = LinearStatistics(absmax, np.full(width, 0.1), tokens=1)
    attentions = {}
    if config is not None:
        heads = 2, config.num_key_value_heads, config.head_dim
        keys, values = np.random.default_rng(SEED).standard_normal((2, *heads), np.float32).astype(np.float16)
        costs = np.ones(heads[:2], np.float32)
        names = (f"/model/layers.{i}/self_attn/MatMul_1" for i in range(config.num_hidden_layers))
        attentions = {name: AttentionStatistics(keys, values, costs) for name in names}
    return Statistics(entries, {}, attentions)


def optimize(source: Path, target: Path, statistics: Statistics, *, scheme: str, random_codes: bool = False) -> None:
    """Write ``scheme`` of ``source``, without its head.

    Args:
        source: a model in fp16.
        target: the file to write.
        statistics: of its linears, and of its attention where the cache is in codes.
        scheme: preset, with "+" and the preset of a cache behind it for a cache that is updated in place.
        random_codes: whether the codes of weights and the codebooks of a cache are random.
    """
    model = ir.load(source)
    name, _, cache = scheme.partition("+")
    heads = ["*lm_head*"] if name != "none" and any("lm_head" in linear for linear in statistics.linears) else []
    recipe = Recipe.preset(name, SCHEMES, heads)
    if cache:
        recipe = recipe.with_cache(cache, {}, CACHES)
    if random_codes:
        with _random_codes():
            compile.optimize(model, recipe, statistics, jobs=1)  # another process would not see the stand-ins
    else:
        compile.optimize(model, recipe, statistics)
    if cache and kv_cache.read(model.shell.metadata_props) is None:
        raise SystemExit(f"{target}: no cache {cache}")
    ir.save(model, target)


@contextmanager
def _random_codes() -> Iterator[None]:
    with (
        patch.object(mixq_lower, "quantize_weight", _random_mixq),
        patch.object(vq_lower, "quantize_weight", _random_vq),
        patch.object(mant_lower, "quantize_weight", _random_mant),
        patch.object(vq_cache, "_train", _random_books),
    ):
        yield


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng([SEED, len(name), *name.encode()])


def _random_mixq(
    linear: LinearView, indices: np.ndarray, config: MixQConfig, **calibration: Any
) -> mixq_weight.QuantizedWeight:
    (n, k), rng, four = linear.shape, _rng(linear.name), config.weight_bits == 4
    codes = rng.integers(-127, 128, (n, packed_bytes(k) if four else k), np.int8)
    groups = rng.integers(1, 16, (-(-k // config.group) if config.group else 1, n), np.int8) if four else None
    outliers = (0.02 * rng.standard_normal((n, indices.size), np.float32)).astype(np.float16)
    outliers[:, indices < 0] = 0
    if not four:
        codes[:, indices[indices >= 0]] = 0
    group = config.group or max(2 * packed_bytes(k), 2)
    return mixq_weight.QuantizedWeight(codes, groups, group, np.full(n, 1e-4, np.float32), outliers, 1.0, None)


def _random_vq(
    linear: LinearView, config: VQConfig, moment: Any, signs: np.ndarray | None, rng: np.random.Generator
) -> vq_weight.QuantizedWeight:
    rows, columns = linear.shape[0], len(moment.diagonal)
    tile_rows, tile_columns = (config.tile, config.tile) if config.tile else (rows, columns)
    count = columns // config.vector * config.residuals
    shape = (-(-rows // tile_rows), -(-columns // tile_columns), config.residuals, 1 << config.bits, config.vector)
    books = None if signs is not None else (0.02 * rng.standard_normal(shape, np.float32)).astype(np.float16)
    codes = rng.integers(-128, 128, (rows, row_bytes(count, config.bits)), np.int8)
    scale = np.full(rows, 0.02, np.float32)
    return vq_weight.QuantizedWeight(
        codes, books, scale, config.bits, config.residuals, tile_rows, tile_columns, error=1.0, output_error=1.0
    )


def _random_mant(linear: LinearView, config: MantConfig, calibration: Any) -> mant_weight.QuantizedWeight:
    (n, k), rng, table = linear.shape, _rng(linear.name), mant_weight.table_of(config)
    groups = -(-k // config.group)
    codes = rng.integers(-128, 128, (n, packed_bytes(k)), np.int8)
    ids = rng.choice(np.array(table.ids, np.uint8), (groups, n))
    return mant_weight.QuantizedWeight(codes, ids, np.full((groups, n), 1e-3, np.float16), 1.0, None)


def _random_books(entry: AttentionStatistics, config: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    _, heads, size = entry.keys.shape
    shape = heads, size // config.vector, 256, config.vector
    keys, values = _rng(name).standard_normal((2, *shape), np.float32)
    return keys, values


def write_decoder(config: LlamaConfig, source: Path, outliers: int) -> None:
    """Write a random fp16 decoder with ``outliers`` channels that are larger than the others."""
    build_llama(config, RandomWeights(config, SEED, outliers=outliers), source, dtype="float16", opset=OPSET)
