"""Small random decoders with and without a cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)


def write_decoder(path: Path, *, vocabulary: int = CONFIG.vocab_size, dtype: str = "float32") -> Path:
    """Write a decoder with a growing cache."""
    config = replace(CONFIG, vocab_size=vocabulary)
    build_llama(config, RandomWeights(config, seed=3, outliers=2), path, dtype=dtype)
    return path


def without_cache(source: Path, path: Path) -> Path:
    """Write the decoder ``source`` with an empty past fixed inside, and no present."""
    proto = onnx.load(source)
    graph = proto.graph
    empty = np.zeros((1, CONFIG.num_key_value_heads, 0, CONFIG.head_dim), np.float32)
    graph.initializer.extend(numpy_helper.from_array(empty, i.name) for i in graph.input if i.name.startswith("past"))
    for field, prefix in ((graph.input, "past"), (graph.output, "present")):
        kept = [v for v in field if not v.name.startswith(prefix)]
        del field[:]
        field.extend(kept)
    onnx.save(proto, path)
    return path


def with_static_cache(source: Path, path: Path, capacity: int | None = None) -> Path:
    """Write the decoder ``source`` with a cache that is updated in place, its linears untouched."""
    model = ir.load(source)
    compile.optimize(model, Recipe.preset("none", SCHEMES).with_cache("static", {"capacity": capacity}, CACHES))
    ir.save(model, path)
    return path


def growing_profiles(*ranges: tuple[tuple[int, int, int], tuple[int, int, int]]) -> list[dict]:
    """Profiles of the growing decoder from (tokens, past) ranges."""
    profiles = []
    for seq, past in ranges:
        total = tuple(s + p for s, p in zip(seq, past, strict=True))
        cache = tuple((1, CONFIG.num_key_value_heads, p, CONFIG.head_dim) for p in past)
        profile = {name: tuple((1, s) for s in seq) for name in ("input_ids", "position_ids")}
        profile["attention_mask"] = tuple((1, t) for t in total)
        names = (f"past_key_values.{i}.{k}" for i in range(CONFIG.num_hidden_layers) for k in ("key", "value"))
        profiles.append(profile | dict.fromkeys(names, cache))
    return profiles


def static_profiles(*ranges: tuple[tuple[int, int, int], int]) -> list[dict]:
    """Profiles of the decoder with a static cache from (tokens, capacity)."""
    cache = ((1, CONFIG.num_key_value_heads, capacity, CONFIG.head_dim) for _, capacity in ranges)
    names = [f"past_key_values.{i}.{k}" for i in range(CONFIG.num_hidden_layers) for k in ("key", "value")]
    return [
        {"input_ids": tuple((1, s) for s in seq), "start": ((1,),) * 3, **dict.fromkeys(names, (shape,) * 3)}
        for (seq, _), shape in zip(ranges, cache, strict=True)
    ]
