"""Tables that several verbs draw."""

__all__ = ["findings_table", "linear_rows", "size_table"]

import re
from pathlib import Path

import onnx_graphsurgeon as gs
from rich.console import Console
from rich.table import Table

from graphopt.core.op import DOMAIN
from graphopt.core.report import Finding, Report
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes import OPS


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
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in report.findings:
        if f.status == "rewritten":
            groups.setdefault((f.rule, re.sub(r" *'[^']*'", "", f.reason)), []).append(f)
    for (rule, outcome), found in groups.items():
        rewrites.add_row(rule, outcome + _outliers(found), str(len(found)))
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


def _outliers(found: list[Finding]) -> str:
    """Return how many outlier channels the findings of one kind have, where they have any."""
    counts = [f.detail["outliers"] for f in found if "outliers" in f.detail]
    return f"; {min(counts)} to {max(counts)} outlier channels" if counts else ""


def linear_rows(model: Model) -> list[gs.Node]:
    """Return the canonical and lowered linears of a model, in graph order."""
    names = {spec.name for spec in OPS if spec.family == "Linear"}
    return [n for n in model.graph.nodes if n.domain == DOMAIN and n.op in names]
