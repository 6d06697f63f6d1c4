"""The key-value cache in codes: CachedLayer -> VQCachedAttention, with codebooks trained on calibrated keys and values.

A codebook belongs to a layer, a key head and a group of v channels. Tokens count in its training by what an error of
theirs costs in the outputs: `AttentionStatistics.attention` of a value, `AttentionStatistics.key_attention` of a key.
"""

__all__ = ["CODES", "Codes", "CodesConfig"]

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field

from graphopt.core.cache import CachedLayer
from graphopt.core.report import Report
from graphopt.core.statistics import AttentionStatistics, Statistics
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes.vq import cache_ops
from graphopt.passes.vq.arrange import arrange
from graphopt.passes.vq.kmeans import kmeans

STAGE = "lower-vq-cache"
_BITS = 8
#: How often k-means moves entries.
_ITERATIONS = 8
#: Tokens that the reported errors are measured on.
_CHECKED = 512
#: Share of the mean weight that every token has at least.
_FLOOR = 0.1


class CodesConfig(BaseModel):
    """One byte for every ``vector`` consecutive channels of a key or value."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    capacity: int | None = Field(
        default=None, ge=1, description="Rows of the cache for each sequence; null leaves it a dynamic axis."
    )
    vector: Literal[2, 4, 8, 16] = Field(2, description="v: channels that share a code of 8 bits")
    weighting: Literal["attention", "none"] = Field(
        "attention", description="whether tokens count in training by what their errors cost, or all alike"
    )
    arrange: bool = Field(
        True,
        description="whether channels of keys are scaled and reordered for their codebooks, in the weights that make "
        "queries and keys; scores stay what they are",
    )
    seed: int = Field(0, ge=0, description="of everything random")


class Codes:
    """Keys and values as entries of codebooks ("Coupled Quantization", Zhang et al., 2024)."""

    name = "vq"
    config: type[BaseModel] = CodesConfig
    presets: Mapping[str, Mapping[str, Any]] = {"cq4": {"vector": 2}, "cq2": {"vector": 4}}
    ops = cache_ops.OPS

    def refusal(self, layer: CachedLayer, config: Any, statistics: Statistics | None) -> str | None:
        """See `graphopt.core.cache.CacheFormat.refusal`."""
        entry = None if statistics is None else statistics.attentions.get(layer.name)
        if entry is None:
            return "it has no statistics of keys and values; make them with 'graphopt calibrate --keys-values'"
        if layer.head_size % config.vector:
            return f"its head size {layer.head_size} is no multiple of vector {config.vector}"
        expected = layer.kv_heads, layer.head_size
        if entry.keys.shape[1:] != expected or entry.values.shape[1:] != expected:
            return f"its heads are {expected}, the statistics have {entry.keys.shape[1:]}; calibrate this very model"
        return None

    def emit(
        self, model: Model, layers: Sequence[CachedLayer], config: Any, statistics: Statistics | None, report: Report
    ) -> tuple[float, list[tuple[str, str]]]:
        """See `graphopt.core.cache.CacheFormat.emit`."""
        assert statistics is not None
        pairs = []
        report.begin(STAGE, len(layers))
        for layer, entry in _arranged(model, layers, config, statistics, report):
            report.step(layer.name)
            kind = weights.numpy_dtype(weights.onnx_dtype(layer.q.dtype))
            trained = (book.astype(kind) for book in _train(entry, config, layer.name))
            books = dict(zip(("codebook_k", "codebook_v"), trained, strict=True))
            constants = [model.store.put(model.unique_name(f"{layer.name}_{n}"), book) for n, book in books.items()]
            for past, present in ((layer.past_k, layer.present_k), (layer.past_v, layer.present_v)):
                _hold_codes(past, present, layer.head_size // config.vector)
                pairs.append((past.name, present.name))
            inputs = [layer.q, layer.k, layer.v, layer.cos, layer.sin, layer.past_k, layer.past_v, layer.start]
            outputs = [layer.y, layer.present_k, layer.present_v]
            node = cache_ops.CACHED_ATTENTION.node(
                layer.name, [*inputs, *constants], outputs, scale=layer.scale, rotary=layer.rotary
            )
            model.graph.nodes.append(node)
            errors = {
                f"{what}_error": _error(samples, book)
                for what, samples, book in zip(
                    ("key", "value"), (entry.keys, entry.values), books.values(), strict=True
                )
            }
            sizes = {"codebook_bytes": sum(book.nbytes for book in books.values())}
            report.note(
                STAGE, self.name, layer.name, f"VQ<{config.vector},{_BITS},1> keys and values", **errors, **sizes
            )
        return _BITS / config.vector, pairs


CODES = Codes()


def _arranged(
    model: Model, layers: Sequence[CachedLayer], config: CodesConfig, statistics: Statistics, report: Report
) -> list[tuple[CachedLayer, AttentionStatistics]]:
    """Return the layers with their statistics, both with keys arranged for codebooks where that is possible."""
    entries = [statistics.attentions[layer.name] for layer in layers]
    if not config.arrange:
        return list(zip(layers, entries, strict=True))
    token_weights = [_token_weights(_key_costs(entry), config) for entry in entries]
    result = []
    done = arrange(model, layers, entries, token_weights, config.vector)
    for (layer, how), entry in zip(done, entries, strict=True):
        if isinstance(how, str):
            report.note(STAGE, CODES.name, layer.name, f"channels of keys stay as they are: {how}")
        else:
            entry = replace(entry, keys=how.keys(entry.keys))
            scales = {"least_scale": float(how.scale.min()), "greatest_scale": float(how.scale.max())}
            reason = "channels of keys are scaled and reordered, in the weights of queries and keys"
            report.note(STAGE, CODES.name, layer.name, reason, **scales)
        result.append((layer, entry))
    return result


def _hold_codes(past: gs.Variable, present: gs.Variable, groups: int) -> None:
    for tensor in (past, present):
        tensor.dtype = np.int8
        tensor.shape = [*tensor.shape[:-1], groups]


def _train(entry: AttentionStatistics, config: CodesConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the codebooks of keys and of values, each (Hkv, G, 256, v) float32, frequent entries first."""
    rng = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    keys = _books(entry.keys, _token_weights(_key_costs(entry), config), config, rng)
    return keys, _books(entry.values, _token_weights(entry.attention, config), config, rng)


def _key_costs(entry: AttentionStatistics) -> np.ndarray:
    """What errors of each token's key cost (tokens, Hkv); in statistics that do not know it, as those of values."""
    return entry.attention if entry.key_attention is None else entry.key_attention


def _token_weights(cost: np.ndarray, config: CodesConfig) -> np.ndarray:
    """Return how much tokens count in training, (tokens, Hkv), whose errors cost ``cost`` (tokens, Hkv)."""
    weight = cost if config.weighting == "attention" else np.ones_like(cost)
    mean = weight.mean(axis=0)
    # Relative to their mean: sums over a few tokens of tiny costs would vanish in float32.
    return np.asarray(np.divide(weight, mean, where=mean > 0, out=np.ones_like(weight)) + np.float32(_FLOOR))


def _books(x: np.ndarray, weight: np.ndarray, config: CodesConfig, rng: np.random.Generator) -> np.ndarray:
    """Train codebooks of x (tokens, Hkv, D), whose tokens have ``weight`` (tokens, Hkv): (Hkv, G, 256, v) float32."""
    return np.stack([_head(x[:, h].astype(np.float32), weight[:, h], config.vector, rng) for h in range(x.shape[1])])


def _head(x: np.ndarray, weight: np.ndarray, v: int, rng: np.random.Generator) -> np.ndarray:
    """Train the codebooks of one head: x (tokens, D), weight (tokens,) -> (G, 256, v), frequent entries first."""
    books = []
    for start in range(0, x.shape[1], v):
        vectors = np.ascontiguousarray(x[None, :, start : start + v])
        book, codes = kmeans(vectors, np.eye(v, dtype=np.float32)[None], weight[None], 1 << _BITS, _ITERATIONS, rng)
        books.append(book[np.argsort(-np.bincount(codes[0], minlength=len(book)), kind="stable")])
    return np.stack(books)


def _error(samples: np.ndarray, codebook: np.ndarray) -> float:
    """||x - x̂|| / ||x|| of some of the samples (tokens, Hkv, D)."""
    exact = samples[:: max(1, len(samples) // _CHECKED)].astype(np.float32)
    codes = cache_ops.encode_cache(exact, codebook)
    back = cache_ops.decode_cache(codes[:, :, None], codebook)[:, :, 0]
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(exact - back)) / norm if norm else 0.0
