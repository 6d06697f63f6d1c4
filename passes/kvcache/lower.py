"""A decoder whose cache grows by concatenation -> one whose cache has a fixed capacity and is updated in place.

    inputs   past (B, Hkv, past, D), attention_mask (B, past + S), position_ids (B, S)
        =>   past (B, Hkv, C, D), start (B,)
    Attention(Rotary(x_q), Concat(past_k, Rotary(x_k)), Concat(past_v, x_v), mask)
        =>   the op of a cache format on x_q, x_k, x_v as (B, S, H, D), without transposes

All layers change or none does: they share the inputs that go. Visits the main graph.
"""

__all__ = ["STAGE", "lower"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.core.cache import CachedLayer, CacheFormat
from graphopt.core.emit import Emitter, element_type
from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.ir import kv_cache, origin, query
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.kvcache.find import Layer, find
from graphopt.passes.kvcache.live import Live, trace
from graphopt.passes.kvcache.probe import Prober, UnprovableError
from graphopt.passes.kvcache.prove import Cut, padding, tables_rank

STAGE = "kv-cache"
_START = "start"
_SWAP = [0, 2, 1, 3]
#: What is said of a mask, by the padding that it hides.
_PADDING = {
    "left": "(padding on the left) is replaced by start",
    "right": "(padding on the right) is replaced by start",
    "ignored": "is dropped",
}


@dataclass(frozen=True)
class _Plan:
    """What was found and shown about a model."""

    tokens: gs.Tensor
    layers: list[Layer]
    live: Live
    tables_rank: int
    padding: str


def lower(
    model: Model,
    cache: CacheFormat,
    config: Any,
    statistics: Statistics | None,
    report: Report,
    *,
    dry_run: bool = False,
) -> None:
    """Give ``model`` a cache of the format ``cache``, or report why it keeps the one it has.

    Args:
        model: canonical; changed in place.
        cache: the format.
        config: an instance of ``cache.config``.
        statistics: of `graphopt calibrate`, for formats that want them.
        report: gets one finding per attention layer.
        dry_run: only report.
    """
    model.tidy()
    layers, refusals = find(model)
    for refusal in refusals:
        report.skipped(STAGE, cache.name, refusal.node or "", refusal.reason)
    names = [layer.node.name for layer in layers] or ["model"]
    try:
        if refusals:
            raise UnprovableError("another layer cannot change, and all share their inputs")
        plan = _plan(model, layers)
    except UnprovableError as e:
        for name in names:
            report.skipped(STAGE, cache.name, name, str(e))
        return
    writer = _Writer(model, plan, config.capacity)
    cached = [writer.describe(layer) for layer in layers]
    refused = [(c.name, reason) for c in cached if (reason := cache.refusal(c, config, statistics))]
    for name, why in refused:
        report.skipped(STAGE, cache.name, name, why)
    if not refused:
        for name in names:
            report.rewritten(STAGE, cache.name, name, f"a causal attention_mask {_PADDING[plan.padding]}")
        if not dry_run:
            writer.attach(cached)
            bits, pairs = cache.emit(model, cached, config, statistics, report)
            writer.finish()
            kv_cache.write(model, kv_cache.KvCache(cache.name, writer.start.name, config.capacity, bits, tuple(pairs)))
    model.tidy()


def _without_layers(model: Model) -> str:
    """Why no layer has a cache that grows; attention that was written out with a scheme is not found again."""
    if (cache := kv_cache.read(model.shell.metadata_props)) is not None:
        return (
            f"its cache is updated in place already, in format '{cache.kind}'; optimize the file that it was made from"
        )
    nothing = "no attention reads past and new keys, concatenated"
    if (scheme := origin.read(model.shell.metadata_props)) is None:
        return nothing
    return f"{nothing}; it went through '{scheme}' before: optimize the file that it was made from, with both at once"


def _plan(model: Model, layers: list[Layer]) -> _Plan:
    if not layers:
        raise UnprovableError(_without_layers(model))
    tokens = _tokens(model, layers)
    prober = Prober(model, tokens, layers)
    masks = {id(layer.mask): layer.mask for layer in layers}
    meanings = {padding(prober, mask) for mask in masks.values()}
    if len(meanings) > 1:
        raise UnprovableError("layers treat padding in different ways")
    live = trace(model, prober, tokens, layers)
    tables = {id(t): t for layer in layers for t in layer.tables or ()}
    rank = tables_rank(prober, list(tables.values()), live.cuts) if tables else 3
    return _Plan(tokens, layers, live, rank, meanings.pop())


def _tokens(model: Model, layers: Sequence[Layer]) -> gs.Tensor:
    """Return the input (B, S) or (B, S, H) of new tokens."""
    batch = layers[0].past[0].shape[0]
    past = {id(t) for layer in layers for t in layer.past}
    for name in ("input_ids", "inputs_embeds"):
        found = next((t for t in model.graph.inputs if t.name == name and id(t) not in past), None)
        if found is not None and found.shape is not None and len(found.shape) >= 2:
            if found.shape[0] != batch or None in found.shape[:2]:
                raise UnprovableError(f"'{found.name}' and the caches name no batch axis, or different ones")
            return found
    raise UnprovableError("the model has no input 'input_ids' or 'inputs_embeds'")


class _Writer:
    """Writes what surrounds the ops of a format: start, positions, tables, layouts, inputs and outputs."""

    def __init__(self, model: Model, plan: _Plan, capacity: int | None) -> None:
        self._model, self._plan = model, plan
        self._capacity = kv_cache.CAPACITY if capacity is None else capacity
        self._emitter = Emitter(model, model.graph, "kv_cache")
        self._batch, self._seq = plan.tokens.shape[:2]
        self.start = gs.Variable(model.unique_name(_START), np.int32, [self._batch])
        self._tables: dict[int, gs.Tensor] = {}
        self._read_before = {id(t) for t in model.graph.inputs if t.outputs}

    def describe(self, layer: Layer) -> CachedLayer:
        """Return ``layer`` as formats see it; nothing reads the new nodes yet."""
        q, k, v = (self._tokens_first(t) for t in (layer.q, layer.k, layer.v))
        cos, sin = self._dummies(layer) if layer.tables is None else (self._table(t) for t in layer.tables)
        name = layer.node.name
        y = gs.Variable(self._model.unique_name(f"{name}/tokens_first"), q.dtype, q.shape)
        return CachedLayer(
            name, q, k, v, cos, sin, layer.tables is not None, layer.scale, *layer.past, *layer.present, self.start, y,
            layer.kv_heads, layer.head_size,
        )  # fmt: skip

    def attach(self, cached: Sequence[CachedLayer]) -> None:
        """Free the outputs of the attention and give the inputs their new meaning."""
        self._compute_positions()
        self._read_batch_elsewhere()
        for layer, c in zip(self._plan.layers, cached, strict=True):
            self._give(layer.node, c.y)
            for past, present in zip(layer.past, layer.present, strict=True):
                present.inputs.clear()
                past.shape = [self._batch, layer.kv_heads, self._capacity, layer.head_size]
                present.shape, present.dtype = list(past.shape), past.dtype

    def finish(self) -> None:
        """Drop the inputs that nothing reads any more, and infer the shapes that have changed."""
        graph = self._model.graph
        graph.inputs.append(self.start)
        self._model.tidy()
        graph.inputs = [t for t in graph.inputs if t.outputs or id(t) not in self._read_before]
        infer_shapes(self._model)

    def _tokens_first(self, x: gs.Tensor) -> gs.Tensor:
        """(B, H, S, D) -> (B, S, H, D): what was transposed, where it was."""
        node = query.producer(x)
        if query.is_op(node, "Transpose") and list(node.attrs.get("perm", [])) == _SWAP:
            return node.inputs[0]
        sliced = query.is_op(node, "Slice") and len(node.inputs) == 4 and _is_axis(node.inputs[3], 1)
        if node is None or not sliced or x.shape is None:
            return self._emitter.transpose(x, _SWAP)
        source, axis = self._tokens_first(node.inputs[0]), self._emitter.const([2])
        shape = [x.shape[i] for i in _SWAP]
        return self._emitter.op("Slice", source, *node.inputs[1:3], axis, dtype=x.dtype, shape=shape)

    def _give(self, node: gs.Node, y: gs.Tensor) -> None:
        """Let the readers of an attention's output (B, H, S, D) read ``y`` (B, S, H, D) instead."""
        (old,) = node.outputs
        node.outputs.clear()
        others = []
        for reader in query.consumers(old):
            if query.is_op(reader, "Transpose") and list(reader.attrs.get("perm", [])) == _SWAP:
                _replace(reader.outputs[0], y)
            else:
                others.append(reader)
        if others:
            turned = self._emitter.transpose(y, _SWAP)
            for reader in others:
                _redirect(reader, old, turned)

    def _table(self, table: gs.Tensor) -> gs.Tensor:
        """Return a rotary table as (1 or B, S, D)."""
        if id(table) not in self._tables:
            size = self._plan.layers[0].head_size
            kind, shape = self._plan.layers[0].q.dtype, [self._batch, self._seq, size]
            flat, node = table, query.producer(table)
            if self._plan.tables_rank == 4 and query.is_op(node, "Unsqueeze") and _is_axis(node.inputs[1], 1):
                flat = node.inputs[0]
            elif self._plan.tables_rank == 4:
                flat = self._emitter.op("Squeeze", table, self._emitter.const([1]), dtype=table.dtype, shape=shape)
            if element_type(flat) != element_type(self._plan.layers[0].q):
                to = element_type(self._plan.layers[0].q)
                flat = self._emitter.op("Cast", flat, dtype=kind, shape=shape, to=to)
            self._tables[id(table)] = flat
        return self._tables[id(table)]

    def _dummies(self, layer: Layer) -> tuple[gs.Tensor, gs.Tensor]:
        if 0 not in self._tables:
            ones = np.ones((1, 1, layer.head_size))
            self._tables[0] = self._emitter.const(ones, element_type(layer.q))
        return self._tables[0], self._tables[0]

    def _compute_positions(self) -> None:
        """Let start + 0, 1, ... take the place of what held the positions."""
        if not self._plan.live.cuts:
            return
        emitter, scalar = self._emitter, self._emitter.const([], np.int64)
        seq = emitter.op("Reshape", emitter.dims(self._plan.tokens, 1, 2), scalar, dtype=np.int64, shape=[])
        steps = emitter.op("Range", emitter.const(0), seq, emitter.const(1), dtype=np.int64, shape=[self._seq])
        first = emitter.op("Cast", self.start, dtype=np.int64, shape=[self._batch], to=onnx.TensorProto.INT64)
        matrix = [self._batch, self._seq]
        positions = emitter.op(
            "Add", emitter.unsqueeze(first, [1]), emitter.unsqueeze(steps, [0]), dtype=np.int64, shape=matrix
        )
        for cut in self._plan.live.cuts:
            replaced = self._shaped(cut, positions)
            _replace(cut.tensor, replaced)
            _forget_shapes(replaced)

    def _shaped(self, cut: Cut, positions: gs.Tensor) -> gs.Tensor:
        kind = element_type(cut.tensor)
        if kind != onnx.TensorProto.INT64:
            positions = self._emitter.op("Cast", positions, dtype=cut.tensor.dtype, shape=positions.shape, to=kind)
        axes = [i for i in range(cut.rank) if i not in (0, cut.axis)]
        return self._emitter.unsqueeze(positions, axes) if axes else positions

    def _read_batch_elsewhere(self) -> None:
        """Take the batch size from the new tokens where it was taken from an input that goes."""
        for read in self._plan.live.batch_reads:
            tokens_shape = self._emitter.op("Shape", self._plan.tokens, dtype=np.int64, **read.shape.attrs)
            _redirect(read.reader, read.shape.outputs[0], tokens_shape)


def _is_axis(tensor: gs.Tensor, axis: int) -> bool:
    """Whether ``tensor`` is a constant list of this axis alone."""
    axes = query.constant_array(tensor)
    return axes is not None and axes.reshape(-1).tolist() == [axis]


def _replace(old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every reader of ``old``, which is no output of the graph, read ``new``."""
    for reader in query.consumers(old):
        _redirect(reader, old, new)


def _forget_shapes(positions: gs.Tensor) -> None:
    """Drop the shapes of what is computed from ``positions``, which now differ by sequence."""
    pending = [t for node in query.consumers(positions) for t in node.outputs]
    while pending:
        tensor = pending.pop()
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = None
            pending += [t for node in query.consumers(tensor) if node.domain != DOMAIN for t in node.outputs]


def _redirect(reader: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    for i, tensor in enumerate(reader.inputs):
        if tensor is old:
            reader.inputs[i] = new
