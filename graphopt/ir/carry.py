"""What graphsurgeon drops, taken out of a model before the import and put back at the export.

Nodes keep ``metadata`` (a dict: exporters write the source module there) and ``carried``, a NodeProto with the fields
and attributes that graphsurgeon has no place for. Tensors that are no tensors (sequences, optionals, maps) keep their
``type_proto``. Empty list attributes keep their type.
"""

__all__ = ["Carried", "EmptyList", "attach", "detach", "graphs", "imported_graphs"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError

_Kind = onnx.AttributeProto
_TYPED_LISTS = {_Kind.FLOATS: "floats", _Kind.INTS: "ints", _Kind.STRINGS: "strings"}
_IMPORTED = {_Kind.FLOAT, _Kind.INT, _Kind.STRING, _Kind.TENSOR, _Kind.GRAPH, *_TYPED_LISTS}
_TEXT_FIELDS = ("doc_string", "overload")


class EmptyList(list[Any]):
    """An empty list attribute that remembers its type, which ONNX needs and Python's list does not have."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind


@dataclass(frozen=True)
class Carried:
    """What was taken out, in the order of the nodes and graphs of the model."""

    nodes: list[onnx.NodeProto]
    types: list[dict[str, onnx.TypeProto]]


def detach(graph: onnx.GraphProto) -> Carried:
    """Remove from ``graph`` and its subgraphs what graphsurgeon would drop or fail on, and return it.

    Raises:
        ModelError: a node has a list of graphs as an attribute.
    """
    carried = Carried([], [])
    for sub in graphs(graph):
        carried.types.append(_detach_types(sub))
        for node in sub.node:
            carried.nodes.append(_detach_node(node))
    return carried


def attach(graph: gs.Graph, carried: Carried) -> None:
    """Hang what `detach` returned on the nodes and tensors of the imported graph."""
    nodes, types = iter(carried.nodes), iter(carried.types)
    for sub in imported_graphs(graph):
        tensors = sub.tensors()
        for name, type_proto in next(types).items():
            if name in tensors:
                tensors[name].type_proto = type_proto
        for node in sub.nodes:
            extra = next(nodes)
            node.metadata = {p.key: p.value for p in extra.metadata_props}
            del extra.metadata_props[:]
            for empty in [a for a in extra.attribute if _is_empty_list(a)]:
                node.attrs[empty.name] = EmptyList(empty.type)
                extra.attribute.remove(empty)
            node.carried = extra


def imported_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield ``graph``, then the graphs in its nodes' attributes, in node order and depth first."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from imported_graphs(value)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the order of `imported_graphs`."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == _Kind.GRAPH:
                yield from graphs(attribute.g)


def _detach_types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    types = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.WhichOneof("value") not in (None, "tensor_type"):
            types[info.name] = onnx.TypeProto.FromString(info.type.SerializeToString())
            info.ClearField("type")
    return types


def _detach_node(node: onnx.NodeProto) -> onnx.NodeProto:
    extra = onnx.NodeProto(metadata_props=node.metadata_props)
    for descriptor, value in node.ListFields():
        if descriptor.name in _TEXT_FIELDS:
            setattr(extra, descriptor.name, value)
    extra.device_configurations.extend(node.device_configurations)
    taken = [a for a in node.attribute if _is_empty_list(a) or not _survives(a)]
    for attribute in taken:
        if attribute.graphs:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) has a list of graphs as its attribute '{attribute.name}', "
                "which no standard operator has; remove or replace that node first"
            )
        extra.attribute.append(attribute)
        node.attribute.remove(attribute)
    return extra


def _is_empty_list(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in _TYPED_LISTS and not getattr(attribute, _TYPED_LISTS[attribute.type])


def _survives(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon imports and exports ``attribute`` unharmed; it decodes strings as UTF-8."""
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return attribute.type in _IMPORTED
