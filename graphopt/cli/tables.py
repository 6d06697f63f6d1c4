"""Tables that several verbs draw."""

__all__ = ["findings_table", "linear_rows", "size_table"]

from collections import Counter
from pathlib import Path

import onnx_graphsurgeon as gs
from rich.console import Console
from rich.table import Table

from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir import weights
from graphopt.ir.model import Model


def size_table(model: Model) -> dict[str, int]:
    """Return node count, plugin node count and weight bytes of a model."""
    constants = {id(t): t for t in model.graph.tensors().values() if isinstance(t, gs.Constant)}
    plugin = sum(n.domain == DOMAIN and "plugin_namespace" in n.attrs for n in model.graph.nodes)
    return {
        "nodes": len(model.graph.nodes),
        "plugin_nodes": plugin,
        "weight_bytes": sum(weights.nbytes(t) for t in constants.values()),
    }


def findings_table(
    out: Console,
    report: Report,
    before: dict[str, int],
    after: dict[str, int],
    files: list[Path],
    *,
    dry_run: bool,
) -> None:
    """Draw what a run did: rewrites by rule and outcome, every refusal with its reason, sizes, files."""
    rewrites = Table("rule", "what came out", "nodes", title="would be rewritten" if dry_run else "rewritten")
    outcomes = Counter((f.rule, f.reason) for f in report.findings if f.status == "rewritten")
    for (rule, reason), count in outcomes.items():
        rewrites.add_row(rule, reason, str(count))
    out.print(rewrites)
    others = [f for f in report.findings if f.status != "rewritten"]
    if others:
        refusals = Table("rule", "node", "", "reason", title="left as it was, and why")
        for f in others:
            refusals.add_row(f.rule, f.node, f.status, f.reason)
        out.print(refusals)
    if not dry_run:
        sizes = Table("", "before", "after")
        for key in before:
            sizes.add_row(key.replace("_", " "), f"{before[key]:,}", f"{after[key]:,}")
        out.print(sizes)
        out.print("wrote " + ", ".join(map(str, files)), soft_wrap=True)


def linear_rows(model: Model) -> list[gs.Node]:
    """Return the canonical and lowered linears of a model, in graph order."""
    return [n for n in model.graph.nodes if n.domain == DOMAIN and (n.op in LINEAR_OPS or n.op.endswith("Linear"))]
