"""Models of older opsets, written as opset 15.

What changed between opsets 11 and 15, beside types that were added: ``axes`` of Squeeze, Unsqueeze and ReduceSum and
``split`` of Split became inputs (13), softmax lost its implied flattening (13), and Dropout its ratio attribute (12).
Large tensors stay where they are, unlike in onnx.version_converter, which needs all of them in one message of 2 GB.
"""

__all__ = ["OLDEST_OPSET", "upgrade"]

from collections.abc import Iterable

import numpy as np
import onnx

from graphopt.errors import ModelError
from graphopt.ir.carry import graphs
from graphopt.ir.model import MIN_OPSET

#: The oldest opset whose operators can be rewritten; exporters of transformers have written 11 and newer since 2020.
OLDEST_OPSET = 11
_SOFTMAX_CHANGED = 13
#: Op -> attribute that became an input.
_TO_INPUT = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
_OLD_SOFTMAX_AXIS = 1


def upgrade(proto: onnx.ModelProto) -> None:
    """Rewrite ``proto``, of a standard opset from `OLDEST_OPSET` on, as `MIN_OPSET`, in place.

    Raises:
        ModelError: it holds a node whose meaning opset 15 cannot express.
    """
    imported = next(o for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if imported.version < _SOFTMAX_CHANGED:
        ranks = _ranks(proto)
        for graph in graphs(proto.graph):
            nodes = [new for node in graph.node for new in _rewritten(node, ranks)]
            del graph.node[:]
            graph.node.extend(nodes)
    for graph in graphs(proto.graph):
        for node in graph.node:
            _check(node)
    imported.version = MIN_OPSET
    proto.ir_version = max(proto.ir_version, onnx.helper.find_min_ir_version_for([imported]))


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the ranks that the old opset implies, by the names of tensors."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, ValueError):  # said again, with its reason, of the upgraded graph
        inferred = proto
    infos = (i for g in graphs(inferred.graph) for i in (*g.value_info, *g.input, *g.output))
    return {i.name: len(i.type.tensor_type.shape.dim) for i in infos if i.type.tensor_type.HasField("shape")}


def _rewritten(node: onnx.NodeProto, ranks: dict[str, int]) -> Iterable[onnx.NodeProto]:
    """Return the nodes of opset 13 that do what ``node`` of opset 11 or 12 does."""
    if node.domain not in ("", "ai.onnx"):
        return [node]
    attributes = {a.name: a for a in node.attribute}
    name = _TO_INPUT.get(node.op_type)
    if name in attributes:
        return [_constant(f"{node.output[0]}_{name}", attributes[name].ints), _with_input(node, attributes[name])]
    if node.op_type == "Dropout" and "ratio" in attributes:
        node.attribute.remove(attributes["ratio"])  # without training mode, a Dropout returns its input
    if node.op_type in _SOFTMAX:
        return _softmax(node, attributes["axis"].i if "axis" in attributes else _OLD_SOFTMAX_AXIS, ranks)
    return [node]


def _softmax(node: onnx.NodeProto, axis: int, ranks: dict[str, int]) -> list[onnx.NodeProto]:
    """Over all axes from ``axis`` on together, as the op did before opset 13: X.flatten(axis) is its argument."""
    x, y = node.input[0], node.output[0]
    rank = ranks.get(x)
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("axis", -1))
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        return [node]
    shape, rows, flat = f"{y}_shape", f"{y}_rows", f"{y}_flat"
    node.input[0], node.output[0] = rows, flat
    return [
        onnx.helper.make_node("Shape", [x], [shape]),
        onnx.helper.make_node("Flatten", [x], [rows], axis=axis),
        node,
        onnx.helper.make_node("Reshape", [flat, shape], [y]),
    ]


def _constant(name: str, values: Iterable[int]) -> onnx.NodeProto:
    tensor = onnx.numpy_helper.from_array(np.array(list(values), np.int64))
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def _with_input(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> onnx.NodeProto:
    """Return ``node`` with its attribute as the second input, which `_constant` makes."""
    node.input.append(f"{node.output[0]}_{attribute.name}")
    node.attribute.remove(attribute)
    return node


def _check(node: onnx.NodeProto) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    trained = node.op_type == "BatchNormalization" and sum(map(bool, node.output)) > 1
    mode = next((a.s for a in node.attribute if a.name == "coordinate_transformation_mode"), b"")
    if trained or mode == b"tf_half_pixel_for_nn":
        what = "statistics of training as outputs" if trained else "the mode tf_half_pixel_for_nn"
        raise ModelError(
            f"node '{node.name or node.output[0]}' ({node.op_type}) has {what}, which opset {MIN_OPSET} does not have; "
            f"export it with opset {MIN_OPSET} or newer"
        )
