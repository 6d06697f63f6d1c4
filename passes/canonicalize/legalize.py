"""Write canonical ops that no scheme lowered back into standard operators, from the bodies that define them.

Attributes become constants, an If whose condition follows from them becomes its branch, and CastLike becomes a Cast (or
nothing) where the type is known. Visits the main graph and its subgraphs.
"""

__all__ = ["legalize"]

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.emit import element_type, take_outputs
from graphopt.core.op import OpSpec
from graphopt.core.report import Report
from graphopt.errors import InternalError
from graphopt.ir.dead import remove_dead
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.canonicalize.cleanup import clean_up
from graphopt.passes.canonicalize.fold_constants import fold_constants
from graphopt.passes.canonicalize.ops import OPS
from graphopt.passes.canonicalize.share_common import share_common

STAGE = "legalize"
_SPECS: Mapping[str, OpSpec] = {spec.name: spec for spec in OPS}


def legalize(model: Model, report: Report) -> None:
    """Inline every canonical op, then tidy what the bodies repeat."""
    counts: Counter[str] = Counter()
    for graph in model.all_graphs():
        for node in list(graph.nodes):
            spec = _SPECS.get(node.op)
            if spec is None or not spec.is_node(node):
                continue
            counts[spec.name] += 1
            _inline(model, graph, node, spec)
        remove_dead(graph)
        graph.toposort()
    if not counts:
        return
    for name, count in sorted(counts.items()):
        report.rewritten(STAGE, "inline", name, f"{name} written in standard operators", nodes=count)
    infer_shapes(model)
    quiet = Report()
    for tidy in (clean_up, fold_constants, share_common, clean_up):
        tidy(model, quiet)


def _inline(model: Model, graph: gs.Graph, node: gs.Node, spec: OpSpec) -> None:
    function = spec.function(model.opset)
    nodes = list(_resolve(function.node, {p.name: p for p in _attributes(node)}))
    known = {t.name: onnx.ValueInfoProto(name=t.name) for t in (*spec.inputs, *spec.outputs)}
    body = helper.make_graph(
        nodes, spec.name, [known[p.name] for p in spec.inputs], [known[p.name] for p in spec.outputs]
    )
    inlined = OnnxImporter.import_graph(body, opset=model.opset)
    actual = dict(zip((p.name for p in spec.inputs), node.inputs, strict=True))
    results = dict(zip((p.name for p in spec.outputs), take_outputs(node), strict=True))
    # Two files' worth of names meet in one that was optimized before: "rotary/add" may be another rotary's there.
    unique = {name: model.unique_name(f"{node.name}/{name}") for name in sorted(_names(inlined))}
    # The name by which recipes and statistics call a linear is that of its product, here as in the file it came from.
    product = next((n for n in inlined.nodes if n.op == "MatMul"), None) if spec.name in LINEAR_OPS else None
    for inner in inlined.nodes:
        inner.name = str(node.name) if inner is product else unique[inner.name]
        inner.metadata = dict(getattr(node, "metadata", {}))
        for i, tensor in enumerate(inner.inputs):
            if tensor.name in actual:
                inner.inputs[i] = actual[tensor.name]
        for i, tensor in enumerate(inner.outputs):
            if tensor.name in results:
                inner.outputs[i] = results[tensor.name]
    taken = {id(t) for t in (*actual.values(), *results.values())}
    for tensor in {id(t): t for n in inlined.nodes for t in (*n.inputs, *n.outputs)}.values():
        if id(tensor) not in taken and tensor.name:
            tensor.name = unique[tensor.name]
    for inner in inlined.nodes:
        if inner.op == "CastLike" and (to := element_type(inner.inputs[1])) is not None:
            inner.op, inner.attrs["to"] = "Cast", to
            del inner.inputs[1]
        graph.nodes.append(inner)


def _names(graph: gs.Graph) -> set[str]:
    """The names of nodes and tensors; a node of a body is called as what it gives."""
    return {t.name for n in graph.nodes for t in (n, *n.inputs, *n.outputs) if t.name}


def _attributes(node: gs.Node) -> list[onnx.AttributeProto]:
    return [helper.make_attribute(name, value) for name, value in node.attrs.items()]


def _resolve(
    nodes: Iterable[onnx.NodeProto], attributes: Mapping[str, onnx.AttributeProto]
) -> Iterable[onnx.NodeProto]:
    """Yield ``nodes`` with attribute references replaced by values and decided Ifs by their branch."""
    scalars: dict[str, int | float] = {}
    for original in nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                _fill(attribute, attributes[attribute.ref_attr_name])
            if attribute.name == "value_float":
                # graphsurgeon would read the number as float64.
                value = numpy_helper.from_array(np.array(attribute.f, np.float32))
                attribute.CopyFrom(helper.make_attribute("value", value))
        if node.op_type == "Constant":
            scalars |= _scalar(node)
        elif node.op_type == "Cast" and node.input[0] in scalars:
            scalars[node.output[0]] = scalars[node.input[0]]
        if node.op_type != "If":
            yield node
            continue
        if node.input[0] not in scalars:
            raise InternalError(f"the condition of '{node.name}' in a canonical body does not follow from attributes")
        wanted = "then_branch" if scalars[node.input[0]] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        rename = dict(zip((o.name for o in branch.output), node.output, strict=True))
        for inner in _resolve(branch.node, attributes):
            inner.name = inner.name or f"{node.name}_{inner.op_type.lower()}"
            inner.output[:] = [rename.get(name, name) for name in inner.output]
            yield inner


def _fill(attribute: onnx.AttributeProto, value: onnx.AttributeProto) -> None:
    name = attribute.name
    attribute.CopyFrom(value)
    attribute.name = name


def _scalar(node: onnx.NodeProto) -> dict[str, int | float]:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, (int, float)):
            return {node.output[0]: value}
        if isinstance(value, onnx.TensorProto) and not value.dims:
            return {node.output[0]: numpy_helper.to_array(value).item()}
    return {}
