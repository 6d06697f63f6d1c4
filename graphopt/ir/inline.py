"""Calls of model-local functions that hold products, written out: linears in them are linears like others.

Exporters that keep modules or operators as functions (torch's, on request or of 2022 to 2024; onnxscript) leave nothing
in the main graph that a pass could see. Functions without products stay calls, and ours, which are definitions of
plugins, always. A node of the body of ``layer.0`` is called ``layer.0/fc1``: recipes and statistics call linears by
their names, and onnx.inliner would call it ``fc1__1``, whatever the module.
"""

__all__ = ["inline_products"]

from collections.abc import Collection, Iterable, Iterator

import onnx

from graphopt.ir.carry import graphs
from graphopt.ir.walk import all_nodes

_PRODUCTS = ("MatMul", "Gemm", "Einsum")
_OURS = "graphopt"
#: (domain, name, overload) of a function, or of what a node calls.
_Key = tuple[str, str, str]


def inline_products(proto: onnx.ModelProto) -> None:
    """Replace the calls in ``proto``, in place; functions that nothing calls any more go."""
    known = {_key_of(f): f for f in proto.functions if f.domain != _OURS and _fits(f, proto)}
    wanted = {key: f for key, f in known.items() if _holds_product(key, known, ())}
    if not wanted:
        return
    inliner = _Inliner(wanted, _names(proto))
    for graph in list(graphs(proto.graph)):
        nodes = list(inliner.expand(graph.node, ()))
        del graph.node[:]
        graph.node.extend(nodes)
    called = {_key(n) for n in all_nodes(proto.graph.node)}
    called |= {_key(n) for f in proto.functions if _key_of(f) not in wanted for n in all_nodes(f.node)}
    kept = [f for f in proto.functions if _key_of(f) not in wanted or _key_of(f) in called]
    del proto.functions[:]
    proto.functions.extend(kept)
    imported = {o.domain for o in proto.opset_import}
    more = {o.domain: o for f in wanted.values() for o in f.opset_import if o.domain not in imported}
    proto.opset_import.extend(more.values())


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _key_of(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def _fits(function: onnx.FunctionProto, proto: onnx.ModelProto) -> bool:
    """Whether the body means the same in the main graph: it imports no other version of anything."""
    imported = {o.domain: o.version for o in proto.opset_import}
    return all(imported.get(o.domain, o.version) == o.version for o in function.opset_import)


def _holds_product(key: _Key, known: dict[_Key, onnx.FunctionProto], within: tuple[_Key, ...]) -> bool:
    if key not in known or key in within:
        return False
    nodes = list(all_nodes(known[key].node))
    return any(n.op_type in _PRODUCTS and not n.domain for n in nodes) or any(
        _holds_product(_key(n), known, (*within, key)) for n in nodes
    )


def _names(proto: onnx.ModelProto) -> set[str]:
    names = {name for n in all_nodes(proto.graph.node) for name in (n.name, *n.output)}
    return names | {t.name for g in graphs(proto.graph) for t in (*g.input, *g.initializer)}


class _Inliner:
    """Writes calls out.

    Args:
        functions: those to write out.
        names: of all nodes and values; grows.
    """

    def __init__(self, functions: dict[_Key, onnx.FunctionProto], names: set[str]) -> None:
        self._functions = functions
        self._names = names

    def expand(self, nodes: Iterable[onnx.NodeProto], within: tuple[_Key, ...]) -> Iterator[onnx.NodeProto]:
        """Yield ``nodes`` with calls written out, those in the bodies too; ``within`` is being written out."""
        for node in nodes:
            key = _key(node)
            if key in self._functions and key not in within:
                yield from self.expand(self._body(node, self._functions[key]), (*within, key))
            else:
                yield node

    def _body(self, call: onnx.NodeProto, function: onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
        stem = call.name or f"{next(filter(None, call.output), call.op_type)}_{call.op_type}"
        values = {"": ""}
        for formal, actual in _pairs(function.input, call.input):
            values[formal] = actual
        for formal, actual in _pairs(function.output, call.output):
            if formal in values:
                yield onnx.helper.make_node("Identity", [values[formal]], [actual], self._fresh(f"{stem}/{formal}"))
            elif actual:
                values[formal] = actual
        attributes = {a.name: a for a in (*function.attribute_proto, *call.attribute)}
        for node in function.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            self._rename(copy, stem, values, attributes)
            yield copy

    def _rename(
        self, node: onnx.NodeProto, stem: str, values: dict[str, str], attributes: dict[str, onnx.AttributeProto]
    ) -> None:
        """Give ``node`` of a body, and what is in its graphs, names of the main graph and the call's attributes."""
        node.name = self._fresh(f"{stem}/{node.name or node.op_type}")
        node.input[:] = [self._value(name, stem, values) for name in node.input]
        node.output[:] = [self._value(name, stem, values) for name in node.output]
        for attribute in list(node.attribute):
            if attribute.ref_attr_name:
                given, name = attributes.get(attribute.ref_attr_name), attribute.name
                if given is None:
                    node.attribute.remove(attribute)
                    continue
                attribute.CopyFrom(given)
                attribute.name = name
            if attribute.HasField("g"):
                graph = attribute.g
                for named in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
                    named.name = self._value(named.name, stem, values)
                for inner in graph.node:
                    self._rename(inner, stem, values, attributes)

    def _value(self, name: str, stem: str, values: dict[str, str]) -> str:
        if name not in values:
            values[name] = self._fresh(f"{stem}/{name}")
        return values[name]

    def _fresh(self, base: str) -> str:
        name, number = base, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name


def _pairs(formal: Collection[str], actual: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each parameter with what it is in the call; "" for those that are left out at the end."""
    return zip(formal, (*actual, *[""] * (len(formal) - len(actual))), strict=True)
