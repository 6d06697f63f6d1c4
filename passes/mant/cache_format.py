"""The M-ANT cache: `CachedLayer` -> MANTCachedAttention."""

__all__ = ["CACHE", "MantCache", "MantCacheConfig"]

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field

from graphopt.core.cache import CachedLayer
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.errors import CalibrationError
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.numerics.packing import PACK_STEP
from graphopt.passes.mant import cache_ops
from graphopt.passes.mant.cache_codes import SELECTORS

#: Channels or tokens of a group, the first that divides the head size.
_GROUPS = (64, 32)


class MantCacheConfig(BaseModel):
    """Keys and values in 4 bits, quantized in real time."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    capacity: int | None = Field(
        default=None, ge=1, description="Rows of the cache for each sequence; null leaves it a dynamic axis."
    )
    selector: Literal["trial", "variance3", "variance8"] = Field(
        "trial", description="how a group gets its type: the best of four candidates, or by its variance"
    )


class MantCache:
    """Keys in groups of channels, values in groups of tokens; sixteen adaptive types."""

    name = "kv-mant4"
    config: type[BaseModel] = MantCacheConfig
    presets: Mapping[str, Mapping[str, Any]] = {"kv-mant4": {}}
    ops = cache_ops.OPS

    def refusal(self, layer: CachedLayer, config: Any, statistics: Statistics | None) -> str | None:
        """See `graphopt.core.cache.CacheFormat.refusal`."""
        size = layer.head_size
        if size % PACK_STEP:
            return f"its head size {size} is no multiple of {PACK_STEP}"
        group = _group(size)
        if config.capacity is not None and config.capacity % group:
            return f"the capacity {config.capacity} is no multiple of {group}, the tokens of a page"
        return None

    def emit(
        self, model: Model, layers: Sequence[CachedLayer], config: Any, statistics: Statistics | None, report: Report
    ) -> tuple[float, list[tuple[str, str]]]:
        """See `graphopt.core.cache.CacheFormat.emit`."""
        pairs: list[tuple[str, str]] = []
        for c in layers:
            past, present = _state(model, c)
            inputs = [c.q, c.k, c.v, c.cos, c.sin, _center(model, c, statistics, report), *past, c.start]
            attributes = {"scale": c.scale, "rotary": c.rotary, "selector": SELECTORS.index(config.selector)}
            node = cache_ops.CACHED_ATTENTION.node(c.name, inputs, [c.y, *present], **attributes)
            model.graph.nodes.append(node)
            pairs += [(a.name, b.name) for a, b in zip(past, present, strict=True)]
        # A word of 16 bits beside the codes of each group; window and sink are constants that long caches make small.
        return 4 + 16 / _group(layers[0].head_size), pairs


CACHE = MantCache()


def _group(head_size: int) -> int:
    return next(g for g in _GROUPS if head_size % g == 0)


def _center(model: Model, c: CachedLayer, statistics: Statistics | None, report: Report) -> gs.Constant:
    """Return the mean of the layer's calibrated keys (Hkv, D), zeros without them."""
    entry = None if statistics is None else statistics.attentions.get(c.name)
    center = np.zeros((c.kv_heads, c.head_size), np.float32)
    if entry is None:
        hint = "'graphopt calibrate --keys-values' lowers their error"
        report.note("kv-cache", CACHE.name, c.name, f"no statistics of keys: they are not centered; {hint}")
    elif entry.keys.shape[1:] != center.shape:
        raise CalibrationError(
            f"the keys of '{c.name}' are {list(center.shape)}, the statistics have {list(entry.keys.shape[1:])}; "
            "calibrate this very model"
        )
    else:
        center = entry.keys.mean(axis=0, dtype=np.float32)
    kind = weights.numpy_dtype(weights.onnx_dtype(c.k.dtype))
    return model.store.put(model.unique_name(f"{c.past_k.name}.center"), center.astype(kind))


def _state(model: Model, c: CachedLayer) -> tuple[list[gs.Variable], list[gs.Variable]]:
    """Give the past and present of a layer the types and shapes of the state, and add what is missing of it."""
    size, group = c.head_size, _group(c.head_size)
    lead, capacity = list(c.past_k.shape[:2]), c.past_k.shape[2]
    sizes: dict[str, tuple[Any, list[Any]]] = {
        "k": (np.dtype(np.int8), [*lead, capacity, size // 2]),
        "k.meta": (np.dtype(np.int8), [*lead, capacity, 2 * size // group]),
        "v": (np.dtype(np.int8), [*lead, capacity, size // 2]),
        "v.meta": (np.dtype(np.int8), [*lead, capacity, 2 * size // group]),
        "v.window": (np.dtype(np.int8), [*lead, group, size]),
        "v.scale": (np.dtype(np.float16), [*lead, group]),
        "v.sink": (c.k.dtype, [*lead, 2, size]),
    }
    past: list[gs.Variable] = []
    present: list[gs.Variable] = []
    sides = ((past, c.past_k, c.past_v, model.graph.inputs), (present, c.present_k, c.present_v, model.graph.outputs))
    for made, k, v, ports in sides:
        for name, (kind, shape) in sizes.items():
            which, _, part = name.partition(".")
            tensor = k if which == "k" else v
            if part:
                tensor = gs.Variable(model.unique_name(f"{tensor.name}.{part}"))
                ports.append(tensor)
            tensor.dtype, tensor.shape = kind, list(shape)
            made.append(tensor)
    return past, present
