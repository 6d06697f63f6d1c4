"""The key-value cache in codes: CachedLayer -> VQCachedAttention, with codebooks trained on calibrated keys and values.

A codebook belongs to a layer, a key head and a group of v channels. Tokens count in its training by what an error of
theirs costs in the outputs: `AttentionStatistics.attention` of a value, `AttentionStatistics.key_attention` of a key.
"""

__all__ = ["CODES", "Codes", "CodesConfig"]

import zlib
from collections.abc import Mapping, Sequence
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
        for layer in layers:
            report.progress(f"{STAGE}: {layer.name}")
            entry = statistics.attentions[layer.name]
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


def _hold_codes(past: gs.Variable, present: gs.Variable, groups: int) -> None:
    for tensor in (past, present):
        tensor.dtype = np.int8
        tensor.shape = [*tensor.shape[:-1], groups]


def _train(entry: AttentionStatistics, config: CodesConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the codebooks of keys and of values, each (Hkv, G, 256, v) float32, frequent entries first."""
    rng = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    of_values, of_keys = entry.attention, entry.key_attention
    of_keys = of_values if of_keys is None else of_keys
    return _books(entry.keys, of_keys, config, rng), _books(entry.values, of_values, config, rng)


def _books(x: np.ndarray, cost: np.ndarray, config: CodesConfig, rng: np.random.Generator) -> np.ndarray:
    """Train the codebooks of x (tokens, Hkv, D), errors of which cost (tokens, Hkv): (Hkv, G, 256, v) float32."""
    weight = cost if config.weighting == "attention" else np.ones_like(cost)
    mean = weight.mean(axis=0)
    # Relative to their mean: sums over a few tokens of tiny costs would vanish in float32.
    weight = np.divide(weight, mean, where=mean > 0, out=np.ones_like(weight)) + np.float32(_FLOOR)
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
