"""Tables that several verbs draw."""

__all__ = ["findings_table", "linear_counts", "linear_rows", "size_table"]

import re
from pathlib import Path

import onnx_graphsurgeon as gs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphopt.core.op import DOMAIN
from graphopt.core.report import Finding, Report
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes import OPS, SCHEMES
from graphopt.passes.canonicalize import PRODUCT_RULES

_QUOTED = re.compile(r"'[^']*'")
#: Nodes of one reason that are shown by name where the reader did not ask for all.
_NAMED = 3


def size_table(model: Model) -> dict[str, int]:
    """Return node count, plugin node count and weight bytes of a model."""
    constants = {id(t): t for t in model.graph.tensors().values() if isinstance(t, gs.Constant)}
    plugin = sum(n.domain == DOMAIN and "plugin_namespace" in n.attrs for n in model.graph.nodes)
    return {
        "nodes": len(model.graph.nodes),
        "plugin_nodes": plugin,
        "weight_bytes": sum(weights.nbytes(t) for t in constants.values()),
    }


def linear_counts(report: Report) -> dict[str, int]:
    """Return how many linears went through a scheme, and how many products with a weight did not."""
    stages = {f"lower-{name}" for name in SCHEMES}
    lowered, left = set(), set()
    for f in report.findings:
        if f.stage in stages and f.status == "rewritten":
            lowered.add(f.node)
        elif f.status == "skipped" and (f.stage in stages | {"lower"} or f.rule in PRODUCT_RULES):
            left.add((f.stage, f.node))
    return {"lowered": len(lowered), "left": len(left)}


def findings_table(
    out: Console,
    report: Report,
    before: dict[str, int],
    after: dict[str, int],
    files: list[Path],
    *,
    dry_run: bool,
) -> None:
    """Draw what a run did: rewrites by rule and outcome, refusals and notes by reason, sizes, files.

    A dry run names every node, a run the first few of each reason.
    """
    rewrites = Table("rule", "what came out", "nodes", title="would be rewritten" if dry_run else "rewritten")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in report.findings:
        if f.status == "rewritten":
            groups.setdefault((f.rule, re.sub(rf" *{_QUOTED.pattern}", "", f.reason)), []).append(f)
    for (rule, outcome), found in groups.items():
        rewrites.add_row(rule, outcome + _outliers(found), str(sum(f.detail.get("nodes", 1) for f in found)))
    out.print(rewrites)
    count = linear_counts(report)
    verb = "would go" if dry_run else "went"
    out.print(f"{count['lowered']} of {sum(count.values())} linears {verb} through a scheme", highlight=False)
    _reasons(out, report, title="left as it was, and why", status="skipped", every=dry_run)
    _reasons(out, report, title="worth knowing", status="note", every=dry_run)
    if not dry_run:
        sizes = Table("", "before", "after")
        for key in before:
            sizes.add_row(key.replace("_", " "), f"{before[key]:,}", f"{after[key]:,}")
        out.print(sizes)
        if count["lowered"] and after["weight_bytes"] > before["weight_bytes"]:
            out.print(
                "its weights take more than before: tables that a scheme stores for each weight, such as codebooks, "
                "are larger here than what its codes save",
                soft_wrap=True,
            )
        out.print("wrote " + ", ".join(map(str, files)), soft_wrap=True)


def _reasons(out: Console, report: Report, *, title: str, status: str, every: bool) -> None:
    """Draw the findings of one status, each reason followed by its nodes.

    Reasons that differ in the names that they quote are one, with the names left out, unless ``every`` node is shown.
    """
    found = [f for f in report.findings if f.status == status]
    if not found:
        return
    spelled: dict[tuple[str, str], set[str]] = {}
    for f in found:
        spelled.setdefault((f.rule, _QUOTED.sub("'...'", f.reason)), set()).add(f.reason)
    groups: dict[tuple[str, str], list[str]] = {}
    for f in found:
        common = _QUOTED.sub("'...'", f.reason)
        reason = f.reason if every or len(spelled[f.rule, common]) == 1 else common
        groups.setdefault((f.rule, reason), []).append(f.node)
    out.print(Text(f"\n{title}", style="italic"))
    # Names are what recipes match: each has a line of its own, for copying, and is never cut.
    for (rule, reason), nodes in groups.items():
        out.print(Text(f"  {rule}: {reason}"), soft_wrap=True)
        named = nodes if every or len(nodes) <= _NAMED + 1 else nodes[:_NAMED]
        for line in (*named, *([f"and {len(nodes) - _NAMED} more"] if len(named) < len(nodes) else [])):
            out.print(Text(f"      {line}"), soft_wrap=True)


def _outliers(found: list[Finding]) -> str:
    """Return how many outlier channels the findings of one kind have, where they have any."""
    counts = [f.detail["outliers"] for f in found if "outliers" in f.detail]
    if not any(counts):
        return ""
    least, most = min(counts), max(counts)
    return f"; {most if least == most else f'{least} to {most}'} outlier channels"


def linear_rows(model: Model) -> list[gs.Node]:
    """Return the canonical and lowered linears of a model, in graph order."""
    names = {spec.name for spec in OPS if spec.family == "Linear"}
    return [n for n in model.graph.nodes if n.domain == DOMAIN and n.op in names]
