"""The cache in the activation type: `CachedLayer` -> CachedAttention."""

__all__ = ["STATIC", "Static"]

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from graphopt.core.cache import CachedLayer
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes.kvcache import ops
from graphopt.passes.kvcache.config import StaticConfig


class Static:
    """Keys and values in T, updated in place."""

    name = "static"
    config: type[BaseModel] = StaticConfig
    presets: Mapping[str, Mapping[str, Any]] = {"static": {}}
    ops = ops.OPS

    def refusal(self, layer: CachedLayer, config: Any, statistics: Statistics | None) -> str | None:
        """See `graphopt.core.cache.CacheFormat.refusal`."""
        return None

    def emit(
        self, model: Model, layers: Sequence[CachedLayer], config: Any, statistics: Statistics | None, report: Report
    ) -> tuple[float, list[tuple[str, str]]]:
        """See `graphopt.core.cache.CacheFormat.emit`."""
        for c in layers:
            inputs = [c.q, c.k, c.v, c.cos, c.sin, c.past_k, c.past_v, c.start]
            outputs = [c.y, c.present_k, c.present_v]
            node = ops.CACHED_ATTENTION.node(c.name, inputs, outputs, scale=c.scale, rotary=c.rotary)
            model.graph.nodes.append(node)
        bits = 8.0 * weights.numpy_dtype(weights.onnx_dtype(layers[0].past_k.dtype)).itemsize
        return bits, [pair for c in layers for pair in _pairs(c)]


STATIC = Static()


def _pairs(c: CachedLayer) -> list[tuple[str, str]]:
    return [(c.past_k.name, c.present_k.name), (c.past_v.name, c.present_v.name)]
