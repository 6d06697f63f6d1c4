"""Norms that are one node -> RMSNorm and LayerNorm.

    RMSNormalization (opset 23), SimplifiedLayerNormalization            -> RMSNorm
    LayerNormalization                                                  -> LayerNorm
    SkipSimplifiedLayerNormalization, SkipLayerNormalization (com.microsoft)
        -> Add(Add(input, skip), bias?) and the norm; the sum stays an output where it is read

Visits the main graph and its subgraphs.
"""

__all__ = ["RULES"]

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, element_type, place, take_outputs
from graphopt.core.op import DOMAIN, OpSpec
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name
from graphopt.passes.canonicalize.norm import vector, zeros_like

_MICROSOFT = "com.microsoft"
#: ONNX Runtime registers these in the standard domain, too, and exporters leave the domain out.
_PLAIN = {
    "RMSNormalization": ops.RMS_NORM,
    "SimplifiedLayerNormalization": ops.RMS_NORM,
    "LayerNormalization": ops.LAYER_NORM,
}
_SKIP = {
    "SkipSimplifiedLayerNormalization": ops.RMS_NORM,
    "SkipLayerNormalization": ops.LAYER_NORM,
}
#: Where a node does not say; ONNX Runtime's schemas differ from ONNX's.
_EPSILON, _SKIP_EPSILON = 1e-5, 1e-12


@dataclass(frozen=True)
class _Norm:
    node: gs.Node
    spec: OpSpec
    gamma: gs.Tensor
    beta: gs.Tensor | None
    bias: gs.Tensor | None = None


def _read(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return not tensor.is_empty() and (bool(tensor.outputs) or query.is_output(graph, tensor))


def _optional(node: gs.Node, index: int) -> gs.Tensor | None:
    return node.inputs[index] if len(node.inputs) > index and not node.inputs[index].is_empty() else None


def _refusal(graph: gs.Graph, norm: _Norm, statistics: slice) -> str | None:
    """Why a one-node norm cannot be canonical; ``statistics`` are its outputs of means and deviations."""
    for name, tensor in (("gain", norm.gamma), ("shift", norm.beta)):
        if tensor is not None and (not query.is_constant(tensor) or len(tensor.shape) != 1):
            return f"{name} '{tensor.name}' is not a constant vector"
    for tensor in norm.node.outputs[statistics]:
        if _read(graph, tensor):
            return f"its output '{tensor.name}' of row statistics is read"
    kinds = {element_type(norm.node.inputs[0]), element_type(norm.gamma)}
    return None if len(kinds) == 1 and None not in kinds else "the types of input and gain differ or are not known"


def _place(model: Model, graph: gs.Graph, norm: _Norm, name: str, x: gs.Tensor) -> None:
    kind = element_type(norm.gamma)
    assert kind is not None
    gamma = vector(model, norm.gamma, kind)
    inputs = [x, gamma]
    if norm.spec is ops.LAYER_NORM:
        inputs.append(zeros_like(model, gamma) if norm.beta is None else vector(model, norm.beta, kind))
    epsilon = norm.node.attrs.get("epsilon", _SKIP_EPSILON if norm.node.op in _SKIP else _EPSILON)
    place(graph, norm.spec, name, inputs, norm.node, epsilon=epsilon)


class PlainNormRule(Rule):
    """RMSNormalization, SimplifiedLayerNormalization, LayerNormalization -> RMSNorm, LayerNorm."""

    name = "norm-op"
    anchors = tuple(_PLAIN)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not (query.is_op(node, *_PLAIN) or query.is_op(node, *_PLAIN, domain=_MICROSOFT)):
            return None
        rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
        axis = node.attrs.get("axis", -1)
        if axis != -1 and (rank is None or axis != rank - 1):
            return Refusal(f"axis {axis} is not the last one")
        beta = _optional(node, 2) if _PLAIN[node.op] is ops.LAYER_NORM else None
        norm = _Norm(node, _PLAIN[node.op], node.inputs[1], beta)
        reason = _refusal(graph, norm, slice(1, None))
        return Refusal(reason) if reason else norm

    def rewrite(self, model: Model, graph: gs.Graph, match: _Norm) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node)
        _place(model, graph, match, name, match.node.inputs[0])
        return f"{match.spec.name} '{name}'"


class SkipNormRule(Rule):
    """SkipSimplifiedLayerNormalization, SkipLayerNormalization -> Add and RMSNorm, LayerNorm."""

    name = "norm-skip"
    anchors = tuple(_SKIP)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, *_SKIP, domain=_MICROSOFT):
            return None
        spec = _SKIP[node.op]
        layer = spec is ops.LAYER_NORM
        beta, bias = (_optional(node, 3), _optional(node, 4)) if layer else (None, _optional(node, 3))
        norm = _Norm(node, spec, node.inputs[2], beta, bias)
        x, skip = node.inputs[:2]
        if x.shape is not None and skip.shape is not None and len(x.shape) != len(skip.shape):
            return Refusal(f"skip '{skip.name}' has rank {len(skip.shape)}, the input has {len(x.shape)}")
        reason = _refusal(graph, norm, slice(1, 3))
        return Refusal(reason) if reason else norm

    def rewrite(self, model: Model, graph: gs.Graph, match: _Norm) -> str:
        """See `Rule.rewrite`."""
        node = match.node
        name = canonical_name(model, node)
        x, skip = node.inputs[:2]
        output, *rest = take_outputs(node)
        total = rest[2] if len(rest) > 2 and not rest[2].is_empty() else None
        emitter = Emitter(model, graph, name)
        terms = [x, skip]
        if match.bias is not None:
            # The bias is that of the linear before, if there is one, whose product goes on as LinearBias.
            at = next((i for i, t in enumerate(terms) if query.is_op(query.producer(t), "Linear", domain=DOMAIN)), 0)
            terms[at] = emitter.op("Add", terms[at], match.bias, like=x)
        summed = emitter.op("Add", *terms, like=x, out=total)
        if total is not None and total.shape is None:
            total.dtype, total.shape = x.dtype, x.shape
        node.outputs.append(output)
        _place(model, graph, match, name, summed)
        return f"Add and {match.spec.name} '{name}'"


RULES = (PlainNormRule(), SkipNormRule())
