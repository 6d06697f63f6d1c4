"""Find the decoder in an optimized graph: which packed tensor is which linear of which layer.

The way through the graph is that of the data: embedding, then for each layer norm, q, k and v, attention, o, norm, gate
and up, gated SiLU and down, then the last norm and the head. q, k and v, and gate and up, are linears of their own or
rows of a merged one. Whatever lies elsewhere, or is not a MixQ op that the package has, is an error that names it. What
the attention itself computes is left to `probe`.
"""

__all__ = ["Linear", "Network", "Operand", "Quantizer", "read"]

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.calibrate.feeds import TOKENS
from graphopt.errors import DeployError
from graphopt.ir import query, weights
from graphopt.runners.decoder import LOGITS

DOMAIN = "graphopt"
#: Plugin op -> its operands after the activations, as the package names them.
_LINEARS = {
    "MixQLinear": ("wq", "sw", "wo", "bias"),
    "MixQLinearW4A8": ("wq4", "sg", "sw", "wo", "bias"),
}
_QUANTIZERS = ("MixQQuantize", "MixQRMSNorm", "MixQAddRMSNorm", "MixQGatedSilu", "MixQSwiGLU")
#: Operands that have their outputs along the second axis.
_COLUMNS = ("sg",)
_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Quantizer:
    """A quantizing op: its outlier channels (C,) int32, and of a norm its gamma (K,) T and epsilon."""

    idx: gs.Constant
    gamma: gs.Constant | None = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class Operand:
    """A tensor of a linear: the part from ``start`` to ``stop`` of a constant, along ``axis``."""

    constant: gs.Constant
    axis: int
    start: int
    stop: int

    def read(self) -> npt.NDArray[Any]:
        """Return the values; see `graphopt.ir.weights.read`."""
        values = weights.read(self.constant)
        return values[:, self.start : self.stop] if self.axis else values[self.start : self.stop]


@dataclass(frozen=True)
class Linear:
    """A packed linear: its name in a Hugging Face checkpoint, its quantizer and its tensors by operand name."""

    name: str
    quantizer: Quantizer
    tensors: dict[str, Operand]
    group: int

    @property
    def rows(self) -> int:
        """Outputs N."""
        return self.tensors["sw"].stop - self.tensors["sw"].start

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 4 if "wq4" in self.tensors else 8

    @property
    def outliers(self) -> int:
        """Capacity C for outlier channels."""
        return int(self.quantizer.idx.shape[0])


@dataclass(frozen=True)
class Network:
    """A decoder.

    Attributes:
        embedding: (vocabulary, hidden) T.
        linears: by name, in the order of use; ``lm_head`` too if it is packed.
        norms: gamma of every norm (hidden,) T, by the name of its module, the last one included.
        epsilons: of those norms that are fused.
        head: (hidden, vocabulary) or, if it is transposed, (vocabulary, hidden) T; None where the head is packed.
        head_transposed: whether ``head`` is read through a transposition.
    """

    embedding: gs.Constant
    linears: dict[str, Linear]
    norms: dict[str, gs.Constant]
    epsilons: dict[str, float]
    head: gs.Constant | None
    head_transposed: bool

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return sum(name.endswith(".q_proj") for name in self.linears)

    @functools.cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding, or a copy of it that a folded transposition left."""
        if self.head is None or self.head is self.embedding:
            return self.head is not None
        if sorted(self.head.shape) != sorted(self.embedding.shape):
            return False
        head = weights.read(self.head)
        return bool(np.array_equal(head if self.head_transposed else head.T, weights.read(self.embedding)))


def read(model: ir.Model) -> Network:
    """Return the decoder in ``model``.

    Raises:
        DeployError: it is no Llama-family decoder of which all linears but the head are packed.
    """
    return _Walk(model).network()


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        self._graph, self._path = model.graph, model.path or Path("the model")
        self._order = {id(n): i for i, n in enumerate(self._graph.nodes)}
        self._linears: dict[str, Linear] = {}
        self._norms: dict[str, gs.Constant] = {}
        self._epsilons: dict[str, float] = {}
        for node in self._graph.nodes:
            if node.domain == DOMAIN and node.op not in (*_LINEARS, *_QUANTIZERS):
                raise self._error(f"'{node.name}' is a {node.op}, which {_reason(node.op)}")

    def network(self) -> Network:
        embedding, stream = self._embedding()
        quantizer, index = self._first_norm(stream), 0
        while True:
            prefix = f"model.layers.{index}"
            if index and self._is_last(quantizer):
                self._norm("model.norm", quantizer)
                (head,) = self._packed(quantizer, ("lm_head",))
                self._require_logits(head)
                return self._done(embedding, None, transposed=False)
            stream, update = self._layer(prefix, quantizer, stream)
            following = self._add_norm(stream, update)
            if following is None:
                return self._plain_head(embedding, stream, update)
            quantizer, stream, index = following, following.outputs[3], index + 1

    def _layer(self, prefix: str, norm: gs.Node, stream: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        """Follow a layer from its first norm; return the residual stream and what the layer adds to it last."""
        self._norm(f"{prefix}.input_layernorm", norm)
        qkv = self._packed(norm, tuple(f"{prefix}.self_attn.{name}" for name in _QKV))
        quantize = self._behind_attention(prefix, qkv)
        (o,) = self._packed(quantize, (f"{prefix}.self_attn.o_proj",))
        second = self._add_norm(stream, o)
        if second is None:
            raise self._error(f"no MixQAddRMSNorm adds '{o.name}' to the residual stream")
        self._norm(f"{prefix}.post_attention_layernorm", second)
        activation = self._activation(second, [f"{prefix}.mlp.{name}" for name in _GATE_UP])
        (down,) = self._packed(activation, (f"{prefix}.mlp.down_proj",))
        return second.outputs[3], down

    def _activation(self, norm: gs.Node, names: Sequence[str]) -> gs.Node:
        """Note gate and up, which read ``norm``, and return the gated SiLU that reads them."""
        outputs = self._packed(norm, names)
        activation = self._reader_of(outputs[0], "MixQGatedSilu") or self._reader_of(outputs[0], "MixQSwiGLU")
        if activation is None or {id(t) for t in activation.inputs[:-1]} != {id(t) for t in outputs}:
            raise self._error(f"{' and '.join(names)} do not meet in a gated SiLU")
        if activation.inputs[0] is not outputs[0]:
            gate, up = (self._linears[name] for name in names)
            self._linears |= {names[0]: replace(up, name=names[0]), names[1]: replace(gate, name=names[1])}
        return activation

    def _embedding(self) -> tuple[gs.Constant, gs.Tensor]:
        for node in self._graph.nodes:
            if (
                query.is_op(node, "Gather")
                and node.inputs[1].name == TOKENS
                and isinstance(node.inputs[0], gs.Constant)
            ):
                return node.inputs[0], node.outputs[0]
        raise self._error(f"no Gather reads an embedding at the input '{TOKENS}'")

    def _first_norm(self, stream: gs.Tensor) -> gs.Node:
        norm = self._reader_of(stream, "MixQRMSNorm")
        if norm is None:
            raise self._error("the embedding does not go into a MixQRMSNorm; optimize with mixq-w8a8 or mixq-w4a8")
        return norm

    def _add_norm(self, stream: gs.Tensor, update: gs.Tensor) -> gs.Node | None:
        node = self._reader_of(update, "MixQAddRMSNorm")
        if node is not None and {id(t) for t in node.inputs[:2]} != {id(stream), id(update)}:
            raise self._error(f"'{node.name}' does not add to the residual stream")
        return node

    def _norm(self, module: str, node: gs.Node) -> None:
        self._norms[module], self._epsilons[module] = node.inputs[-2], float(node.attrs["epsilon"])

    def _readers(self, quantizer: gs.Node) -> list[gs.Node]:
        return sorted(query.consumers(quantizer.outputs[0]), key=lambda n: self._order[id(n)])

    def _packed(self, quantizer: gs.Node, names: Sequence[str]) -> list[gs.Tensor]:
        """Note the linears that read ``quantizer`` under ``names``; return their outputs.

        They are as many nodes, told apart by the names in the file or else by their order; or one, whose rows a Split
        or a MixQSwiGLU (then the output is one) divides.

        Raises:
            DeployError: they are not that many, or something else reads what was quantized.
        """
        nodes = self._readers(quantizer)
        if len(nodes) not in (1, len(names)) or any(n.op not in _LINEARS for n in nodes):
            found = ", ".join(f"'{n.name}' ({n.op})" for n in nodes)
            raise self._error(f"'{quantizer.name}' should be read by the packed {' '.join(names)}, not by {found}")
        if quantizer.attrs.get("emit_y") and any(n.op != "Shape" for n in query.consumers(quantizer.outputs[-1])):
            raise self._error(f"the output y of '{quantizer.name}' is read by a layer that is not packed")
        if len(nodes) < len(names):
            outputs, sizes = self._parts(nodes[0], len(names))
            nodes *= len(names)
        else:
            nodes = _by_name(nodes, [name.rpartition(".")[2] for name in names])
            outputs, sizes = [n.outputs[0] for n in nodes], []
        start = 0
        for i, (node, name) in enumerate(zip(nodes, names, strict=True)):
            stop = start + sizes[i] if sizes else None
            self._linears[name] = self._linear(name, quantizer, node, start, stop)
            start = stop or 0
        self._require_alike([self._linears[name] for name in names])
        return outputs

    def _linear(self, name: str, quantizer: gs.Node, node: gs.Node, start: int, stop: int | None) -> Linear:
        """The outputs from ``start`` to ``stop`` (None: all) of ``node``."""
        gamma = quantizer.inputs[-2] if "RMSNorm" in quantizer.op else None
        shared = Quantizer(quantizer.inputs[-1], gamma, float(quantizer.attrs.get("epsilon", 0.0)))
        operands = dict(zip(_LINEARS[node.op], node.inputs[3:], strict=True))
        if not all(isinstance(t, gs.Constant) for t in (shared.idx, *operands.values())):
            raise self._error(f"the weights of '{node.name}' are no constants")
        stop = stop or int(operands["sw"].shape[0])
        parts = {key: Operand(t, int(key in _COLUMNS), start, stop) for key, t in operands.items()}
        return Linear(name, shared, parts, int(node.attrs.get("group", 0)))

    def _parts(self, node: gs.Node, count: int) -> tuple[list[gs.Tensor], list[int]]:
        """Outputs and sizes of the ``count`` linears that ``node`` was merged from."""
        merged, rows = node.outputs[0], int(node.inputs[3].shape[0])
        reader = query.sole_consumer(self._graph, merged)
        if count == len(_GATE_UP) and reader is not None and reader.op == "MixQSwiGLU":
            return [merged], [rows // 2] * 2
        sizes = query.constant_array(reader.inputs[1]) if query.is_op(reader, "Split") and reader is not None else None
        if reader is None or sizes is None or len(sizes) != count or int(sizes.sum()) != rows:
            raise self._error(f"'{node.name}' should be the merged product of {count} linears, divided by a Split")
        return list(reader.outputs), [int(size) for size in sizes]

    def _is_last(self, quantizer: gs.Node) -> bool:
        """Whether the only linear that reads ``quantizer`` is the head."""
        nodes = self._readers(quantizer)
        reader = query.sole_consumer(self._graph, nodes[0].outputs[0]) if len(nodes) == 1 else quantizer
        return reader is None or query.is_op(reader, "Cast")

    def _require_alike(self, linears: Sequence[Linear]) -> None:
        """q, k and v become one product."""
        if len(linears) == len(_QKV) and len({(x.bits, x.group) for x in linears}) > 1:
            described = ", ".join(f"{x.name} {x.bits} bits" for x in linears)
            raise self._error(f"q, k and v must have the same bits and group ({described}); optimize them alike")

    def _behind_attention(self, prefix: str, outputs: Sequence[gs.Tensor]) -> gs.Node:
        """The MixQQuantize that all of q, k and v reach, and nothing else of ours."""
        reached = [set(self._ahead(t)) for t in outputs]
        found = {id(n): n for n in self._graph.nodes if any(id(n) in ids for ids in reached)}
        if len(found) == 1 and all(len(ids) == 1 for ids in reached):
            (node,) = found.values()
            if node.op == "MixQQuantize":
                return node
        names = ", ".join(f"'{n.name}' ({n.op})" for n in found.values()) or "nothing"
        raise self._error(f"the attention of {prefix} should end in one MixQQuantize, and leads to {names}")

    def _ahead(self, tensor: gs.Tensor) -> Iterator[int]:
        """Ids of the first nodes of ours on every way from ``tensor``."""
        seen, waiting = set(), [tensor]
        while waiting:
            for node in query.consumers(waiting.pop()):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                if node.domain == DOMAIN:
                    yield id(node)
                else:
                    waiting.extend(node.outputs)

    def _reader_of(self, tensor: gs.Tensor, op: str) -> gs.Node | None:
        return next((n for n in query.consumers(tensor) if n.op == op), None)

    def _plain_head(self, embedding: gs.Constant, stream: gs.Tensor, update: gs.Tensor) -> Network:
        """The last norm and the head in standard operators, found backwards from the logits."""
        logits = next((t for t in self._graph.outputs if t.name == LOGITS), None)
        node = query.producer(logits) if logits is not None else None
        while query.is_op(node, "Cast"):
            node = query.producer(node.inputs[0])
        if not query.is_op(node, "MatMul"):
            raise self._error(f"'{LOGITS}' is not the product of the last norm and a weight")
        weight, transposed = node.inputs[1], False
        turned = query.producer(weight)
        if query.is_op(turned, "Transpose"):
            weight, transposed = turned.inputs[0], True
        if not isinstance(weight, gs.Constant):
            raise self._error(f"the weight of '{node.name}' is no constant")
        gammas = self._gammas(node.inputs[0], {id(stream), id(update)}, int(embedding.shape[1]))
        if len(gammas) != 1:
            raise self._error("between the last layer and the head there should be one RMSNorm")
        self._norms["model.norm"] = gammas[0]
        return self._done(embedding, weight, transposed=transposed)

    def _gammas(self, tensor: gs.Tensor, until: set[int], width: int) -> list[gs.Constant]:
        """Vectors of ``width`` that ``tensor`` is made with, on the ways back to the tensors ``until``."""
        found: dict[int, gs.Constant] = {}
        seen: set[int] = set()
        waiting = [tensor]
        while waiting:
            current = waiting.pop()
            if id(current) in seen or id(current) in until:
                continue
            seen.add(id(current))
            if isinstance(current, gs.Constant) and tuple(current.shape) == (width,):
                found[id(current)] = current
            waiting.extend(t for producer in current.inputs for t in producer.inputs)
        return list(found.values())

    def _require_logits(self, tensor: gs.Tensor) -> None:
        node: Any = None
        while tensor.name != LOGITS:
            node = query.sole_consumer(self._graph, tensor)
            if not query.is_op(node, "Cast"):
                raise self._error(f"the packed head does not give '{LOGITS}'")
            tensor = node.outputs[0]

    def _done(self, embedding: gs.Constant, head: gs.Constant | None, *, transposed: bool) -> Network:
        nodes = sum(n.domain == DOMAIN and n.op in _LINEARS for n in self._graph.nodes)
        noted = len({id(x.tensors["sw"].constant) for x in self._linears.values()})
        if nodes != noted:
            raise self._error(f"{nodes - noted} packed linears belong to no layer")
        return Network(embedding, self._linears, self._norms, self._epsilons, head, transposed)

    def _error(self, what: str) -> DeployError:
        return DeployError(f"{self._path} cannot become a checkpoint for TensorRT-LLM: {what}")


def _by_name(nodes: list[gs.Node], parts: Sequence[str]) -> list[gs.Node]:
    """``nodes`` in the order of ``parts`` if each is in the name of one node's weight, else as they are."""
    found = [[n for n in nodes if part in n.inputs[3].name or part in n.name] for part in parts]
    return [match[0] for match in found] if all(len(match) == 1 for match in found) else nodes


def _reason(op: str) -> str:
    """What to do instead of an op that the package lacks."""
    if op.endswith("Online"):
        return "predicts outliers online, with state; calibrate, and optimize with --stats"
    if "Attention" in op:
        return "keeps a cache of its own, as TensorRT-LLM does; optimize without --kv-cache"
    return "the package has no kernel for; optimize a Llama-family decoder with mixq-w8a8 or mixq-w4a8"
