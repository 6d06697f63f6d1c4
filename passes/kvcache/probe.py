"""Small parts of a model, evaluated on sizes of our choice: what masks and positions are, found out and not guessed.

Only what depends on shapes, masks and positions is evaluated. A tensor of activations that is asked for its shape is
replaced by zeros of that shape, which take no memory.
"""

__all__ = ["Probe", "Prober", "UnprovableError"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphopt.ir import query, weights
from graphopt.ir.export import node_proto
from graphopt.ir.model import Model
from graphopt.passes.kvcache.find import Layer

#: Constants up to this many elements are read: tables of masks and rotary angles, no weights.
_MAX_ELEMENTS = 1 << 26
_MASK, _POSITIONS, _CACHE_POSITION = "attention_mask", "position_ids", "cache_position"


class UnprovableError(Exception):
    """A part of the graph cannot be evaluated; the message is a clause that says which and why."""


@dataclass(frozen=True)
class Probe:
    """Sizes of one call: sequences, new tokens, tokens in the cache."""

    batch: int
    seq: int
    past: int

    @property
    def total(self) -> int:
        """Tokens after the call."""
        return self.past + self.seq

    def positions(self) -> np.ndarray:
        """(B, S) int64: past, past + 1, ..."""
        return np.broadcast_to(self.past + np.arange(self.seq), (self.batch, self.seq)).copy()


class Prober:
    """Evaluates tensors of a model with a growing cache.

    Args:
        model: canonical and in topological order.
        tokens: the input (B, S, ...) of new tokens.
        layers: with the cache.
    """

    def __init__(self, model: Model, tokens: gs.Tensor, layers: Sequence[Layer]) -> None:
        self._model = model
        self._inputs = {t.name: t for t in model.graph.inputs}
        self._past = {t.name for layer in layers for t in layer.past}
        self._tokens = tokens
        past = layers[0].past[0].shape[2]
        #: Symbol -> what it counts, by the field of a Probe.
        self._symbols = {tokens.shape[0]: "batch", tokens.shape[1]: "seq", past: "past"}
        self._symbols |= {t.shape[2]: "total" for layer in layers for t in layer.present if t.shape}
        if (mask := self._inputs.get(_MASK)) is not None and mask.shape:
            self._symbols[mask.shape[-1]] = "total"
        self._symbols.pop(None, None)
        #: Caches are not always declared as precisely as this.
        self._caches: dict[int, list[int | str]] = {}
        for y in layers:
            for field, pair in (("past", y.past), ("total", y.present)):
                self._caches |= {id(t): ["batch", y.kv_heads, field, y.head_size] for t in pair}
        self._evaluable: dict[int, str | None] = {}

    def obstacle(self, tensor: gs.Tensor) -> str | None:
        """Return why ``tensor`` cannot be evaluated; None if it can."""
        pending = [tensor]
        while pending:
            current = pending[-1]
            if id(current) in self._evaluable:
                pending.pop()
                continue
            node = query.producer(current)
            needed = [] if node is None or self._takes_zeros(node) else [t for t in node.inputs if not t.is_empty()]
            if waiting := [t for t in needed if id(t) not in self._evaluable]:
                pending += waiting
                continue
            self._evaluable[id(current)] = self._own_obstacle(current, node, needed)
            pending.pop()
        return self._evaluable[id(tensor)]

    def run(
        self,
        tensors: Sequence[gs.Tensor],
        probe: Probe,
        *,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Return the values of ``tensors``.

        Args:
            tensors: of the main graph.
            probe: the sizes.
            given: values of tensors by name, instead of what computes them: inputs, or any other.

        Raises:
            UnprovableError: a tensor depends on activations or on an unknown input, or an operator fails.
        """
        given = given or {}
        nodes, feeds, constants = self._slice(tensors, probe, given)
        types = {name: helper.make_tensor_type_proto(weights.onnx_dtype(v.dtype), v.shape) for name, v in feeds.items()}
        outputs = [helper.make_empty_tensor_value_info(t.name) for t in tensors]
        graph = helper.make_graph(
            nodes, "probe", [helper.make_value_info(*known) for known in types.items()], outputs, constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._model.opset)])
        try:
            with np.errstate(all="ignore"):
                values = ReferenceEvaluator(model).run(None, feeds)
        except Exception as e:
            raise UnprovableError(f"'{tensors[0].name}' cannot be evaluated: {str(e).splitlines()[0]}") from e
        return [np.asarray(v) for v in values]

    def _slice(
        self, tensors: Sequence[gs.Tensor], probe: Probe, given: Mapping[str, np.ndarray]
    ) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[onnx.TensorProto]]:
        """Return the nodes that compute ``tensors``, in order, what they are fed, and their constants."""
        feeds: dict[str, np.ndarray] = {}
        constants: dict[str, onnx.TensorProto] = {}
        needed: set[int] = set()
        pending, seen = list(tensors), set()
        while pending:
            tensor = pending.pop()
            if id(tensor) in seen or tensor.is_empty():
                continue
            seen.add(id(tensor))
            node = query.producer(tensor)
            if tensor.name in given:
                feeds[tensor.name] = given[tensor.name]
            elif isinstance(tensor, gs.Constant):
                constants[tensor.name] = numpy_helper.from_array(np.asarray(self._constant(tensor)), tensor.name)
            elif node is None:
                feeds[tensor.name] = self._feed(tensor, probe)
            else:
                if obstacle := self.obstacle(tensor):
                    raise UnprovableError(obstacle)
                needed.add(id(node))
                if self._takes_zeros(node):
                    (source,) = node.inputs
                    feeds[source.name] = np.broadcast_to(np.zeros((), _dtype(source)), self._size(source, probe))
                else:
                    pending += node.inputs
        nodes = [node_proto(n) for n in self._model.graph.nodes if id(n) in needed]
        for node in nodes:
            del node.metadata_props[:]
        return nodes, feeds, list(constants.values())

    def _own_obstacle(self, tensor: gs.Tensor, node: gs.Node | None, needed: Sequence[gs.Tensor]) -> str | None:
        if isinstance(tensor, gs.Constant):
            elements = int(np.prod(tensor.shape, dtype=np.int64))
            return None if elements <= _MAX_ELEMENTS else f"it depends on weight '{tensor.name}'"
        if node is None:
            return None if self._is_known(tensor) else f"it depends on input '{tensor.name}', whose meaning is unknown"
        if node.domain not in (None, "", "ai.onnx") or any(True for _ in node.subgraphs()):
            return f"it depends on node '{node.name}' ({node.op})"
        if node.op != "Shape" and any(t is self._tokens for t in node.inputs):
            return f"it depends on which tokens '{self._tokens.name}' holds"
        return next((o for t in needed if (o := self._evaluable[id(t)])), None)

    def _takes_zeros(self, node: gs.Node) -> bool:
        """Whether ``node`` is the Shape of activations, whose values do not matter."""
        if not query.is_op(node, "Shape") or query.producer(node.inputs[0]) is None:
            return False
        (source,) = node.inputs
        computed = source.dtype is not None and _dtype(source).kind not in "iub"
        return computed and self._symbolic(source) is not None

    def _is_known(self, tensor: gs.Tensor) -> bool:
        return tensor is self._tokens or tensor.name in self._past | {_MASK, _POSITIONS, _CACHE_POSITION}

    def _feed(self, tensor: gs.Tensor, probe: Probe) -> np.ndarray:
        if not self._is_known(tensor):
            raise UnprovableError(f"it depends on input '{tensor.name}', whose meaning is unknown")
        dtype: Any = _dtype(tensor)
        if tensor.name == _MASK:
            return np.ones((probe.batch, probe.total), dtype)
        if tensor.name == _POSITIONS:
            return probe.positions().astype(dtype)
        if tensor.name == _CACHE_POSITION:
            return probe.positions()[0].astype(dtype)
        return np.broadcast_to(np.zeros((), dtype), self._size(tensor, probe))

    def _symbolic(self, tensor: gs.Tensor) -> list[int | str] | None:
        """Return the dimensions of ``tensor`` as numbers and fields of a Probe; None if one of them is neither."""
        if id(tensor) in self._caches:
            return self._caches[id(tensor)]
        if tensor.shape is None:
            return None
        known = [int(d) if isinstance(d, (int, np.integer)) else self._symbols.get(d) for d in tensor.shape]
        dimensions = [d for d in known if d is not None]
        return dimensions if len(dimensions) == len(known) else None

    def _size(self, tensor: gs.Tensor, probe: Probe) -> list[int]:
        symbolic = self._symbolic(tensor)
        if symbolic is None:
            raise UnprovableError(f"the shape of '{tensor.name}' is not known")
        return [getattr(probe, d) if isinstance(d, str) else int(d) for d in symbolic]

    def _constant(self, tensor: gs.Constant) -> np.ndarray:
        if obstacle := self.obstacle(tensor):
            raise UnprovableError(obstacle)
        return weights.read(tensor)


def _dtype(tensor: gs.Tensor) -> Any:
    return weights.numpy_dtype(weights.onnx_dtype(tensor.dtype))
