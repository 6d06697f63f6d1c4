"""From the graph IR back to a ModelProto.

graphsurgeon's own exporter writes a constant of an outer graph once more into every subgraph that reads it, fails on
empty lists, packs no 4-bit values and drops what `carry` keeps; so graphs are written here.
"""

__all__ = ["node_proto", "opset_imports", "to_proto"]

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import InternalError
from graphopt.ir.carry import EmptyList
from graphopt.ir.model import Model
from graphopt.ir.weights import onnx_dtype

#: The oldest IR version with model-local functions, and the newest that TensorRT 8.6 reads.
_IR_VERSION = 8


def to_proto(model: Model) -> onnx.ModelProto:
    """Return ``model`` as a ModelProto; tensors on disk are external references with absolute locations.

    Raises:
        InternalError: two different tensors of one graph have the same name.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.shell)
    _Writer(model.graph).write(model.graph, proto.graph)
    proto.functions.extend(model.functions)
    del proto.opset_import[:]
    proto.opset_import.extend(opset_imports(model))
    proto.ir_version = proto.ir_version or _IR_VERSION
    if proto.functions:
        proto.ir_version = max(proto.ir_version, _IR_VERSION)
    return proto


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """Return one node as a NodeProto."""
    proto = onnx.NodeProto()
    _Writer(gs.Graph([node])).write_node(node, proto)
    return proto


def opset_imports(model: Model) -> list[onnx.OperatorSetIdProto]:
    """Return the model's operator sets, with version 1 of those that nodes or functions use but nobody imported."""
    declared = model.graph.import_domains or [helper.make_opsetid("", model.graph.opset)]
    imports = {o.domain: o for o in declared}
    standard = {"", "ai.onnx"}
    used = [n.domain or "" for graph in model.all_graphs() for n in graph.nodes] + [f.domain for f in model.functions]
    for domain in used:
        if domain not in imports and not (domain in standard and standard & imports.keys()):
            imports[domain] = helper.make_opsetid(domain, 1)
    return list(imports.values())


class _Writer:
    """Writes a graph and its subgraphs; knows which graph each constant belongs to."""

    def __init__(self, graph: gs.Graph) -> None:
        self._owned: dict[int, list[gs.Constant]] = {}
        uses: dict[int, tuple[gs.Constant, list[gs.Graph]]] = {}
        for scope, constant in _uses([graph]):
            owner = uses.setdefault(id(constant), (constant, scope))[1]
            shared = sum(a is b for a, b in zip(owner, scope, strict=False))
            uses[id(constant)] = (constant, owner[:shared])
        for constant, owner in uses.values():
            self._owned.setdefault(id(owner[-1]), []).append(constant)

    def write(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        """Fill ``proto`` from ``graph``."""
        proto.name, proto.doc_string = graph.name, graph.doc_string or ""
        constants = self._owned.get(id(graph), [])
        _check_names(graph, constants)
        for constant in constants:
            if isinstance(constant._values, SparseValues):
                proto.sparse_initializer.append(constant._values.tensor)
                proto.sparse_initializer[-1].values.name = constant.name
            else:
                proto.initializer.append(_tensor(constant))
        proto.input.extend(_value_info(t) for t in graph.inputs)
        proto.output.extend(_value_info(t) for t in graph.outputs)
        at_border = {id(t) for t in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            self.write_node(node, proto.node.add())
            proto.value_info.extend(
                _value_info(t) for t in node.outputs if t.name and id(t) not in at_border and _is_typed(t)
            )

    def write_node(self, node: gs.Node, proto: onnx.NodeProto) -> None:
        """Fill ``proto`` from ``node``."""
        proto.op_type = node.op
        if node.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        proto.input.extend(t.name for t in node.inputs)
        proto.output.extend(t.name for t in node.outputs)
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                attribute = proto.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
                self.write(value, attribute.g)
            else:
                proto.attribute.append(_attribute(name, value))
        for key, value in getattr(node, "metadata", {}).items():
            proto.metadata_props.add(key=key, value=value)
        if carried := getattr(node, "carried", None):
            proto.MergeFrom(carried)


def _uses(scope: list[gs.Graph]) -> Iterator[tuple[list[gs.Graph], gs.Constant]]:
    """Yield the uses of constants in and below the last graph of ``scope``, with the graphs around, outermost first."""
    graph = scope[-1]
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                yield scope, tensor
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _uses([*scope, value])
    yield from ((scope, t) for t in graph.outputs if isinstance(t, gs.Constant))


def _check_names(graph: gs.Graph, constants: Iterable[gs.Constant]) -> None:
    made = [t for node in graph.nodes for t in node.outputs]
    by_name: dict[str, gs.Tensor] = {}
    for tensor in (*graph.inputs, *constants, *made):
        if tensor.name and by_name.setdefault(tensor.name, tensor) is not tensor:
            raise InternalError(f"two tensors of graph '{graph.name}' are called '{tensor.name}'")


def _is_typed(tensor: gs.Tensor) -> bool:
    return hasattr(tensor, "type_proto") or tensor.dtype is not None or tensor.shape is not None


def _value_info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=tensor.name)
    if hasattr(tensor, "type_proto"):
        info.type.CopyFrom(tensor.type_proto)
        return info
    if tensor.dtype is not None:
        info.type.tensor_type.elem_type = onnx_dtype(tensor.dtype)
    if tensor.shape is not None:
        # Present even without dimensions: that is a scalar, and absent is an unknown rank.
        info.type.tensor_type.shape.SetInParent()
        for size in tensor.shape:
            dim = info.type.tensor_type.shape.dim.add()
            if isinstance(size, str) and size:
                dim.dim_param = size
            elif isinstance(size, (int, np.integer)) and size >= 0:
                dim.dim_value = int(size)
    return info


def _tensor(constant: gs.Constant) -> onnx.TensorProto:
    proto = onnx.TensorProto()
    values = constant._values
    proto.CopyFrom(values.tensor if isinstance(values, LazyValues) else numpy_helper.from_array(np.asarray(values)))
    if proto.name != constant.name:
        proto.name = constant.name
    return proto


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, gs.Constant):
        return helper.make_attribute(name, _tensor(value))
    if isinstance(value, (type, np.dtype)):
        value = onnx_dtype(value)
    if isinstance(value, (list, tuple)) and not value:
        # A pass that sets an empty list means integers: axes, pads, perm.
        kind = value.kind if isinstance(value, EmptyList) else onnx.AttributeProto.INTS
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.AttributeType.Name(kind))
    return helper.make_attribute(name, value)
