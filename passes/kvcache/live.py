"""What still reads a growing cache's inputs once the attention layers do not: positions, batch sizes, or more.

Positions are computed from start instead, batch sizes are read from the new tokens; anything else is a reason to leave
the model as it is.
"""

__all__ = ["BatchRead", "Live", "trace"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.kvcache.find import Layer
from graphopt.passes.kvcache.probe import Prober, UnprovableError
from graphopt.passes.kvcache.prove import Cut, cuts

_MASK = "attention_mask"
_Reader: TypeAlias = "gs.Node | None"


@dataclass(frozen=True)
class BatchRead:
    """``reader`` takes the batch size from what the Shape node ``shape`` gives."""

    reader: gs.Node
    shape: gs.Node


@dataclass(frozen=True)
class Live:
    """What the model without growing caches computes from.

    Attributes:
        cuts: tensors of positions that are read.
        batch_reads: the batch size taken from the shape of an input that goes.
    """

    cuts: tuple[Cut, ...]
    batch_reads: tuple[BatchRead, ...]


def trace(model: Model, prober: Prober, tokens: gs.Tensor, layers: Sequence[Layer]) -> Live:
    """Follow the model's outputs back to its inputs, past the layers' caches and masks.

    Raises:
        UnprovableError: something else than positions and batch sizes is read from an input whose size grows.
    """
    grown = {id(t) for layer in layers for t in layer.present}
    roots = [t for t in model.graph.outputs if id(t) not in grown]
    by_node = {id(layer.node): layer for layer in layers}
    integers: list[gs.Tensor] = []

    def collect(tensor: gs.Tensor, reader: _Reader) -> bool:
        if tensor.dtype is not None and not isinstance(tensor, gs.Constant) and _is_integer(tensor):
            integers.append(tensor)
        return True

    _walk(roots, by_node, collect)
    found = cuts(prober, integers)
    used: dict[int, Cut] = {}
    batch_reads: list[BatchRead] = []
    sizes = set(tokens.shape)

    def goes(tensor: gs.Tensor) -> bool:
        free = [d for d in tensor.shape or [None] if not isinstance(d, (int, np.integer))]
        return _is_input(model, tensor) and (tensor.name == _MASK or not sizes.issuperset(free))

    def check(tensor: gs.Tensor, reader: _Reader) -> bool:
        if id(tensor) in found and reader is None:
            raise UnprovableError(f"positions '{tensor.name}' are an output of the model")
        if id(tensor) in found:
            used[id(tensor)] = found[id(tensor)]
            return False
        shape = query.producer(tensor)
        if reader is not None and query.is_op(shape, "Shape") and goes(shape.inputs[0]) and _is_batch(shape, reader):
            batch_reads.append(BatchRead(reader, shape))
            return False
        if goes(tensor):
            place = "an output" if reader is None else f"node '{reader.name}' ({reader.op})"
            raise UnprovableError(f"input '{tensor.name}' is read by {place}, not only by attention")
        return True

    def unproved(tensor: gs.Tensor, reader: _Reader) -> bool:
        # What replaces it is (B, S), which is shown to give the same rotary tables, and nothing else.
        if id(tensor) in used and used[id(tensor)].rank == 1:
            raise UnprovableError(f"positions '{tensor.name}' of rank 1 are read for something else than rotary tables")
        return True

    _walk(roots, by_node, check)
    _walk(roots, by_node, unproved, tables=False)
    return Live(tuple(used.values()), tuple(batch_reads))


def _walk(
    roots: Sequence[gs.Tensor],
    layers: dict[int, Layer],
    visit: Callable[[gs.Tensor, _Reader], bool],
    *,
    tables: bool = True,
) -> None:
    """Call ``visit(tensor, reader)`` once for every pair on the way back; it says whether to go on from there.

    Past the layers' masks, and past their rotary ``tables`` too if these are not wanted.
    """
    pending: list[tuple[gs.Tensor, _Reader]] = [(t, None) for t in roots]
    seen: set[tuple[int, int]] = set()
    while pending:
        tensor, reader = pending.pop()
        key = id(tensor), id(reader)
        if key in seen or tensor.is_empty():
            continue
        seen.add(key)
        node = query.producer(tensor) if visit(tensor, reader) else None
        if node is None:
            continue
        layer = layers.get(id(node))
        if layer is None:
            pending += [(t, node) for t in query.reads(node)]
        else:
            pending += [(t, node) for t in (layer.q, layer.k, layer.v, *((layer.tables or ()) if tables else ()))]


def _is_integer(tensor: gs.Tensor) -> bool:
    return weights.numpy_dtype(weights.onnx_dtype(tensor.dtype)).kind == "i"


def _is_input(model: Model, tensor: gs.Tensor) -> bool:
    return any(tensor is t for t in model.graph.inputs)


def _is_batch(shape: gs.Node, reader: gs.Node) -> bool:
    """Whether ``reader`` takes nothing but dimension 0 from what a Shape node gives."""
    if "start" in shape.attrs or "end" in shape.attrs:
        return shape.attrs.get("start", 0) == 0 and shape.attrs.get("end") == 1
    return _takes_first(reader, shape.outputs[0])


def _takes_first(node: gs.Node, vector: gs.Tensor) -> bool:
    if node.inputs[0] is not vector:
        return False
    bounds = [query.constant_array(t) for t in node.inputs[1:]]
    if any(b is None for b in bounds):
        return False
    values = [np.asarray(b).reshape(-1).tolist() for b in bounds]
    if query.is_op(node, "Gather"):
        return values == [[0]]
    return query.is_op(node, "Slice") and values[:2] == [[0], [1]] and all(v in ([0], [1]) for v in values[2:])
