"""`Rule`: pattern, check with a reason, rewrite.

A rule anchors on one node. ``match`` answers in one of three ways: None (not my pattern), a `Refusal` (nearly: the
report will say which node and why not), or a match object that ``rewrite`` turns into new nodes. A refusal is never a
bare False, so "why did my layer stay as it was" always has an answer.
"""

__all__ = ["Refusal", "Rule", "apply_rules", "replace_tensor"]

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from graphopt.core.report import Report
from graphopt.ir import query
from graphopt.ir.model import Model


@dataclass(frozen=True)
class Refusal:
    """Why a near match is left alone: ``reason`` is one clause that names the culprit."""

    reason: str
    node: str | None = None  # name of the node to report, where it is not the anchor


class Rule(ABC):
    """A local rewrite of the graph.

    Class attributes:
        name: shown in reports.
        anchors: op types (any domain) at which ``match`` is tried.
    """

    name: ClassVar[str]
    anchors: ClassVar[tuple[str, ...]]

    @abstractmethod
    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """Return a match object, a `Refusal`, or None; must not change the graph."""

    @abstractmethod
    def rewrite(self, model: Model, graph: gs.Graph, match: Any) -> str:
        """Apply a match and return what came out, for the report."""


def apply_rules(model: Model, rules: Sequence[Rule], stage: str, report: Report) -> bool:
    """Try every rule at every node of the main graph and its subgraphs, once, in graph order.

    Functions are not visited: they belong to whoever wrote them. Nodes that a rewrite made are not visited in this
    call. Dead nodes are removed at the end.

    Returns:
        Whether anything changed.
    """
    changed = False
    for graph in list(model.all_graphs()):
        for node in list(graph.nodes):
            for rule in rules:
                if node.op not in rule.anchors or not _is_read(graph, node):
                    continue
                match = rule.match(model, graph, node)
                if match is None:
                    continue
                if isinstance(match, Refusal):
                    report.skipped(stage, rule.name, match.node or node.name, match.reason)
                    continue
                report.rewritten(stage, rule.name, node.name, rule.rewrite(model, graph, match))
                changed = True
                break
    if changed:
        model.tidy()
    return changed


def _is_read(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether anything reads an output of ``node``; what a rewrite has left behind is no longer read."""
    return any(t.outputs or query.is_output(graph, t) for t in node.outputs)


def replace_tensor(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every consumer of ``old``, and the graph's outputs, read ``new``.

    An output of the graph keeps its name: ``new`` takes it over, or, where ``new`` must keep its own (it is a constant,
    an input, another output, or belongs to an outer graph), an Identity node copies it.
    """
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new
    if not query.is_output(graph, old):
        return
    here = any(t is new for node in graph.nodes for t in node.outputs)
    if isinstance(new, gs.Constant) or query.is_output(graph, new) or not here:
        old.inputs.clear()
        graph.nodes.append(gs.Node("Identity", f"{old.name}_copy", inputs=[new], outputs=[old]))
        return
    new.dtype, new.shape = old.dtype, old.shape
    old.name, new.name = f"{old.name}_replaced", old.name
    graph.outputs = [new if t is old else t for t in graph.outputs]
