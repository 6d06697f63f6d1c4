"""The `CacheFormat` protocol: how keys and values are kept between the calls of a decoder.

The pass kvcache finds the attention layers of a decoder, proves that they can use a cache that is updated in place, and
describes each as a `CachedLayer`; the format writes the op that appends and attends.
"""

__all__ = ["CacheFormat", "CachedLayer"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_graphsurgeon as gs
from pydantic import BaseModel

from graphopt.core.op import OpSpec
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.ir.model import Model


@dataclass(frozen=True)
class CachedLayer:
    """One attention layer as the op of a cache format sees it. T is the activation type.

    Attributes:
        name: of the attention node; the node that replaces it takes it over.
        q, k, v: (B, S, Hq, D), (B, S, Hkv, D), (B, S, Hkv, D) T: what this call adds, not rotated yet.
        cos, sin: (1 or B, S, D) T; (1, 1, D) where nothing is rotated.
        rotary: whether the op rotates q and k.
        scale: factor on q · k.
        past_k, past_v: inputs of the graph (B, Hkv, C, D) T; a format may give them another type and last dimension.
        present_k, present_v: outputs of the graph, of the same shapes.
        start: input (B,) int32: rows that each sequence has already.
        y: (B, S, Hq, D) T: a tensor without producer, which the op must give.
        kv_heads: Hkv.
        head_size: D.
    """

    name: str
    q: gs.Tensor
    k: gs.Tensor
    v: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    rotary: bool
    scale: float
    past_k: gs.Variable
    past_v: gs.Variable
    present_k: gs.Variable
    present_v: gs.Variable
    start: gs.Variable
    y: gs.Variable
    kv_heads: int
    head_size: int


class CacheFormat(Protocol):
    """How a cache stores keys and values. One pass folder may offer several."""

    @property
    def name(self) -> str:
        """Name by which recipes call the format, and the ``kind`` in the model's metadata."""

    @property
    def config(self) -> type[BaseModel]:
        """Settings: a pydantic model that forbids unknown keys, with a field ``capacity: int | None``."""

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """What ``--kv-cache NAME`` stands for: settings."""

    @property
    def ops(self) -> tuple[OpSpec, ...]:
        """The custom ops that `emit` places."""

    def refusal(self, layer: CachedLayer, config: Any, statistics: Statistics | None) -> str | None:
        """One clause why the format cannot hold the layer (head size, missing statistics); None if it can."""

    def emit(
        self, model: Model, layers: Sequence[CachedLayer], config: Any, statistics: Statistics | None, report: Report
    ) -> tuple[float, list[tuple[str, str]]]:
        """Append the nodes that give y and present of every layer.

        A format that needs other cache tensors adds them as inputs and outputs of the graph, (B, Hkv, C, ...).

        Returns:
            Bits per cached value, scales included, and the pairs (past, present) of the cache's tensors, by name.
        """
