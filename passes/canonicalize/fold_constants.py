"""Compute at compile time what depends on nothing but small constants and static shapes.

Two things are folded: integer tensors for which `symbolic.integers` finds only numbers, and nodes whose inputs are all
small constants. Weights are never folded, nor is anything that would become one.
Visits the main graph and its subgraphs.
"""

__all__ = ["fold_constants"]

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper
from onnx.reference import ReferenceEvaluator

from graphopt.core.report import Report
from graphopt.core.rule import replace_tensor
from graphopt.ir import query, weights
from graphopt.ir.dead import remove_dead
from graphopt.ir.export import node_proto
from graphopt.ir.model import Model
from graphopt.passes.canonicalize.symbolic import integers

STAGE = "fold-constants"
#: Inputs and results up to this many elements are small: shapes, norm gains, position tables.
_MAX_ELEMENTS = 1 << 16
#: Operators whose result is not a function of their inputs, or that hold graphs, or that schemes look for.
_KEPT = {
    "Constant", "If", "Loop", "Scan", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    "Bernoulli", "Multinomial", "Dropout", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def fold_constants(model: Model, report: Report) -> None:
    """Replace what can be computed now by initializers."""
    for graph in model.all_graphs():
        graph.toposort()
        folded = 0
        outputs = {id(t) for t in graph.outputs}
        for node in list(graph.nodes):
            value = None if any(id(t) in outputs for t in node.outputs) else _value(model, node)
            if value is None:
                continue
            out = node.outputs[0]
            replace_tensor(graph, out, gs.Constant(out.name, value))
            node.outputs.clear()
            folded += 1
        if folded:
            remove_dead(graph)
            report.rewritten(STAGE, STAGE, graph.name or "graph", "became constants", nodes=folded)


def _value(model: Model, node: gs.Node) -> np.ndarray | None:
    """Return what ``node`` always gives, if it is small; None otherwise."""
    if node.domain not in (None, "", "ai.onnx") or node.op in _KEPT or len(node.outputs) != 1:
        return None
    out = node.outputs[0]
    if out.shape is None or out.dtype is None:
        return None
    if not all(isinstance(d, (int, np.integer)) for d in out.shape):
        return None
    if int(np.prod(out.shape, dtype=np.int64)) > _MAX_ELEMENTS:
        return None
    value = _from_shapes(out) if _is_integer(out) else None
    return _from_constants(model, node) if value is None else value


def _is_integer(tensor: gs.Tensor) -> bool:
    return weights.numpy_dtype(weights.onnx_dtype(tensor.dtype)).kind in "iu" and len(tensor.shape) <= 1


def _from_shapes(out: gs.Tensor) -> np.ndarray | None:
    entries = integers(out)
    if entries is None or not all(isinstance(e, int) for e in entries):
        return None
    value = np.array(entries, weights.numpy_dtype(weights.onnx_dtype(out.dtype)))
    return value.reshape(out.shape) if value.size == int(np.prod(out.shape, dtype=np.int64)) else None


def _from_constants(model: Model, node: gs.Node) -> np.ndarray | None:
    if not node.inputs:
        return None
    feeds = {}
    for tensor in node.inputs:
        if tensor.is_empty():
            continue
        value = query.constant_array(tensor, limit=_MAX_ELEMENTS)
        if value is None:
            return None
        feeds[tensor.name] = np.asarray(value)
    proto = node_proto(node)
    types = {name: helper.make_tensor_type_proto(weights.onnx_dtype(v.dtype), v.shape) for name, v in feeds.items()}
    inputs = [helper.make_value_info(*known) for known in types.items()]
    output = helper.make_tensor_value_info(node.outputs[0].name, weights.onnx_dtype(node.outputs[0].dtype), None)
    graph = helper.make_graph([proto], "fold", inputs, [output])
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", model.opset)])
    with np.errstate(all="ignore"):
        (folded,) = ReferenceEvaluator(single).run(None, feeds)
    return np.asarray(folded)
