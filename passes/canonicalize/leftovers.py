"""Say what stays outside the canonical form, so that nobody is surprised at the build.

Operators of other domains run only where their runtime is, and TensorRT imports none of com.microsoft; model-local
functions of others are kept and not looked into. Products of integers were linears once. Visits the main graph and its
subgraphs.
"""

__all__ = ["OF_INTEGERS", "note_leftovers"]

from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir import query
from graphopt.ir.model import Model

STAGE = "leftovers"
#: Products that other tools quantized.
OF_INTEGERS = ("MatMulInteger", "QLinearMatMul")
_QUANTIZED = "it is quantized already; optimize the model that it was made from"


def note_leftovers(model: Model, report: Report) -> None:
    """Note every node of a domain that is neither standard nor ours, foreign functions, and products of integers."""
    functions = {(f.domain, f.name) for f in model.functions}
    for graph in model.all_graphs():
        for node in graph.nodes:
            if query.is_op(node, *OF_INTEGERS):
                report.skipped(STAGE, node.op, node.name, _QUANTIZED)
            if node.domain in (None, "", "ai.onnx", DOMAIN):
                continue
            if (node.domain, node.op) in functions:
                report.note(STAGE, node.op, node.name, f"a call of function {node.domain}.{node.op}, left as it is")
            else:
                report.note(STAGE, node.op, node.name, f"{node.domain}.{node.op} stays; TensorRT needs a plugin for it")
