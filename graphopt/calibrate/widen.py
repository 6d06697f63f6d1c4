"""Bfloat16 models, computed in float32: ONNX Runtime's CPU has hardly any kernels for bfloat16."""

__all__ = ["widen"]

from collections.abc import MutableSequence

import onnx
from onnx import TensorProto, helper

from graphopt.ir.carry import graphs

_STORED = "graphopt_stored:"
#: Attributes that name the type of a node's output; a Cast to bfloat16 rounds, and goes on doing so.
_TYPES = {"dtype", "output_dtype"}


def widen(proto: onnx.ModelProto) -> None:
    """Make every bfloat16 value of ``proto`` a float32 one, in place; weights are stored as they are, and cast.

    What nodes give is no longer rounded to 8 bits, but where a Cast says so: largest magnitudes and mean squares differ
    by some 2^-8.
    """
    for graph in graphs(proto.graph):
        stored = [t for t in graph.initializer if t.data_type == TensorProto.BFLOAT16]
        casts = [_cast(t.name) for t in stored]
        for tensor in stored:
            tensor.name = _STORED + tensor.name
        _nodes(graph.node)
        for cast in reversed(casts):
            graph.node.insert(0, cast)
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
    for function in proto.functions:
        _nodes(function.node)


def _nodes(nodes: MutableSequence[onnx.NodeProto]) -> None:
    """Let the nodes of one graph or function give float32, not those of their subgraphs."""
    widened = []
    for node in nodes:
        widened.append(node)
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            elif _gives_bfloat16(node, attribute):
                widened.append(_cast(node.output[0]))
                node.output[0] = _STORED + node.output[0]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in widened]
    del nodes[:]
    nodes.extend(copies)


def _gives_bfloat16(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Whether the output of a Cast, or of Constant or ConstantOfShape, is bfloat16."""
    cast = node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16
    return cast or attribute.t.data_type == TensorProto.BFLOAT16


def _cast(name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [_STORED + name], [name], name=_STORED + name, to=TensorProto.FLOAT)
