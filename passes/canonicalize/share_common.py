"""Merge nodes that compute the same from the same inputs (common subexpressions).

Exporters write the attention mask, rotary tables and position shapes once per layer; every layer may read the same.
Visits the main graph and its subgraphs, each by itself.
"""

__all__ = ["share_common"]

from typing import Any

import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.core.rule import replace_tensor
from graphopt.ir import weights
from graphopt.ir.dead import remove_dead
from graphopt.ir.model import Model

STAGE = "share-common"
#: Constants up to this many bytes are compared by value; bigger ones are the same only if they are one tensor.
_COMPARED_BYTES = 1024
_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")


def share_common(model: Model, report: Report) -> None:
    """Merge equal nodes; custom ops and nodes with subgraphs are left alone."""
    for graph in model.all_graphs():
        graph.toposort()
        seen: dict[Any, gs.Node] = {}
        outputs = {id(t) for t in graph.outputs}
        merged = 0
        for node in list(graph.nodes):
            key = _key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is node or any(id(t) in outputs for t in node.outputs):
                continue
            for old, new in zip(list(node.outputs), first.outputs, strict=True):
                replace_tensor(graph, old, new)
            node.outputs.clear()
            merged += 1
        if merged:
            remove_dead(graph)
            report.rewritten(STAGE, STAGE, graph.name or "graph", "repeated others", nodes=merged)


def _key(node: gs.Node) -> Any:
    """Return what makes two nodes equal; None if the node must stay by itself."""
    if not node.outputs or node.domain == DOMAIN or node.op.startswith(_RANDOM):
        return None
    attributes = []
    for name, value in sorted(node.attrs.items()):
        if isinstance(value, gs.Graph):
            return None
        attributes.append((name, _tensor_key(value) if isinstance(value, gs.Tensor) else repr(value)))
    if carried := getattr(node, "carried", None):
        attributes += [(a.name, a.SerializeToString()) for a in carried.attribute]
    inputs = tuple(_tensor_key(t) for t in node.inputs)
    wanted = tuple(not t.is_empty() for t in node.outputs)
    return node.op, node.domain or "", tuple(attributes), inputs, wanted


def _tensor_key(tensor: gs.Tensor) -> Any:
    if tensor.is_empty():
        return None
    if isinstance(tensor, gs.Constant) and weights.nbytes(tensor) <= _COMPARED_BYTES:
        value = weights.read(tensor)
        return str(value.dtype), value.shape, value.tobytes()
    return id(tensor)
