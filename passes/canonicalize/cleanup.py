"""Take out what computes nothing, so that patterns need not look through it.

    Constant              -> an initializer
    Identity(x), Concat(x)                                            -> x
    Cast(x) to its own type, Dropout(x) at inference, x * 1, x / 1    -> x
    Transpose(Transpose(x)) that cancel out                           -> x
    Reshape(Reshape(x)) that gives back x's own shape                 -> x

Visits the main graph and its subgraphs. Establishes: no Constant nodes except those that are graph outputs.
"""

__all__ = ["clean_up"]

from collections import Counter

import onnx_graphsurgeon as gs

from graphopt.core.emit import element_type
from graphopt.core.report import Report
from graphopt.core.rule import replace_tensor
from graphopt.ir import query, weights
from graphopt.ir.dead import remove_dead
from graphopt.ir.model import Model
from graphopt.passes.canonicalize.symbolic import dimension, integers

STAGE = "clean-up"
_NO_OPS = ("Identity", "Concat", "Cast", "Dropout", "Mul", "Div", "Transpose", "Reshape")


def clean_up(model: Model, report: Report) -> None:
    """Replace every Constant node and every no-op, then drop what is dead."""
    for graph in model.all_graphs():
        graph.toposort()
        removed: Counter[str] = Counter()
        for node in list(graph.nodes):
            if not node.outputs:
                continue
            old = node.outputs[0]
            new = _initializer(node) if query.is_op(node, "Constant") else _source(node)
            if new is None or not _is_replaceable(graph, old, new):
                continue
            removed[node.op] += 1
            replace_tensor(graph, old, new)
            node.outputs.clear()
        remove_dead(graph)
        graph.toposort()
        for op, count in sorted(removed.items()):
            report.rewritten(STAGE, op, graph.name or "graph", "taken out", nodes=count)


def _is_replaceable(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> bool:
    """Whether ``new`` may stand for ``old``: a graph's output needs a node of this graph that gives it its name."""
    if not query.is_output(graph, old):
        return True
    given = isinstance(new, gs.Constant) or not new.inputs
    return not given and not query.is_output(graph, new) and any(n is new.inputs[0] for n in graph.nodes)


def _initializer(node: gs.Node) -> gs.Constant | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return gs.Constant(node.outputs[0].name, value._values)
    array = query.constant_array(node.outputs[0])
    return None if array is None else gs.Constant(node.outputs[0].name, array)


def _source(node: gs.Node) -> gs.Tensor | None:
    """Return the tensor that the output of ``node`` always equals; None if there is none."""
    if not query.is_op(node, *_NO_OPS):
        return None
    x = node.inputs[0]
    if node.op in ("Identity", "Concat"):
        return x if len(node.inputs) == 1 else None
    if node.op == "Cast":
        return x if element_type(x) == weights.onnx_dtype(node.attrs["to"]) else None
    if node.op == "Dropout":
        training = query.constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
        used = len(node.outputs) > 1 and node.outputs[1].outputs
        unknown = len(node.inputs) > 2 and node.inputs[2].name and training is None
        return None if used or unknown or (training is not None and training.any()) else x
    if node.op in ("Mul", "Div"):
        return _unit_factor(node)
    before = query.producer(x)
    if not query.is_op(before, node.op):
        return None
    assert before is not None
    return _cancelled_transpose(before, node) if node.op == "Transpose" else _cancelled_reshape(before, node)


def _unit_factor(node: gs.Node) -> gs.Tensor | None:
    """x * 1, 1 * x or x / 1, where the 1 cannot widen the shape of x."""
    a, b = node.inputs
    for x, one in ((a, b), (b, a)) if node.op == "Mul" else ((a, b),):
        rank = len(one.shape) if one.shape is not None else None
        fits = rank == 0 or (rank is not None and x.shape is not None and rank <= len(x.shape))
        if fits and query.scalar(one) == 1.0:
            return x
    return None


def _cancelled_transpose(before: gs.Node, node: gs.Node) -> gs.Tensor | None:
    first, second = before.attrs.get("perm"), node.attrs.get("perm")
    if first is None or second is None or [first[p] for p in second] != list(range(len(first))):
        return None
    return before.inputs[0]


def _cancelled_reshape(before: gs.Node, node: gs.Node) -> gs.Tensor | None:
    x = before.inputs[0]
    middle, target = node.inputs[0], integers(node.inputs[1])
    if x.shape is None or target is None or len(target) != len(x.shape) or node.attrs.get("allowzero", 0):
        return None
    target = [dimension(middle, i) if entry == 0 else entry for i, entry in enumerate(target)]
    unknown = [i for i, entry in enumerate(target) if entry != dimension(x, i)]
    return x if not unknown or (len(unknown) == 1 and target[unknown[0]] == -1) else None
