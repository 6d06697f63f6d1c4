"""Canonical norms and activations that a plugin op reads -> one op each, with the residual Add before a norm.

    RMSNorm(Add(x, r)) -> y;  MANTLinear(y, ...)  =>  FusedAddRMSNorm(x, r, gamma) -> y, sum;  MANTLinear(y, ...)
    GatedSilu(gate, up) -> y;  MANTLinear(y, ...)  =>  FusedGatedSilu(gate, up) -> y;  MANTLinear(y, ...)

Comes after the schemes, whose own ops take what makes their inputs with them. What no plugin op reads is left to the
runtime, so that a file needs the plugin library for it only where it needs it anyway. Visits the main graph.
"""

__all__ = ["STAGE", "lower"]

import onnx_graphsurgeon as gs

from graphopt.core.fusion import take_producer
from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.fused.ops import FUSED

STAGE = "fuse"


def lower(model: Model, report: Report) -> None:
    """Make one op of each canonical norm and activation that a plugin op reads."""
    found = [n for n in model.graph.nodes if query.is_op(n, *FUSED, domain=DOMAIN) and _read_by_plugin(n)]
    for node in found:
        _replace(model, node, report)
    if found:
        model.tidy()


def _read_by_plugin(node: gs.Node) -> bool:
    readers = query.consumers(node.outputs[0])
    return any(reader.domain == DOMAIN and "plugin_namespace" in reader.attrs for reader in readers)


def _replace(model: Model, node: gs.Node, report: Report) -> None:
    y = node.outputs[0]

    def unread(suffix: str) -> gs.Variable:
        name = model.unique_name(f"{node.name}_{suffix}")
        return gs.Variable(name, y.dtype, None if y.shape is None else list(y.shape))

    fusion = take_producer(model, y, [], unread)
    assert fusion is not None
    *total, y = fusion.outputs
    attributes = {name: value for name, value in fusion.attributes.items() if name != "emit_y"}
    spec = FUSED[fusion.name]
    made = spec.node(node.name, fusion.inputs, [y, *total], **attributes)
    model.graph.nodes.append(made)
    report.rewritten(STAGE, "producer", made.name, f"{spec.name} in one launch, read by plugin ops")
