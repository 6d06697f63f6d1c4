"""Checking rewrites by text: what a graph is before, and what a rule or a stage makes of it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import onnx

from graphopt import ir
from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.core.rule import Rule, apply_rules
from graphopt.ir import text


def parse(source: str) -> ir.Model:
    """Return the model that ``source`` states in ONNX's text syntax (onnx.parser); opset 18 without a header."""
    source = dedent(source).strip()
    if not source.startswith("<"):
        source = f'<ir_version: 8, opset_import: ["": 18, "graphopt": 1]>\n{source}'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(onnx.parser.parse_model(source), path)
        return ir.load(path)


def body(model: ir.Model) -> str:
    """Return the nodes of ``model`` as IR text, without the header and the signature of the graph."""
    return "\n".join(line.strip() for line in text.dump(model).splitlines()[2:])


def assert_rewrites(
    before: str, change: Rule | Sequence[Rule] | Stage, after: str | None, *, skipped: Sequence[str] = ()
) -> Report:
    """Assert what ``change`` makes of the graph ``before``.

    Args:
        before: a graph in ONNX's text syntax.
        change: a rule, several, or a stage of the pipeline.
        after: the nodes expected, as IR text (graphopt.ir.text); None if the graph must stay as it is.
        skipped: the reasons of the refusals expected in the report; each must occur in one, in order.
    """
    model, report = parse(before), Report()
    unchanged = body(model)
    if isinstance(change, Stage):
        change.run(model, report)
    else:
        apply_rules(model, [change] if isinstance(change, Rule) else change, "test", report)
    expected = unchanged if after is None else "\n".join(line.strip() for line in dedent(after).strip().splitlines())
    assert body(model) == expected
    reasons = [f.reason for f in report.findings if f.status == "skipped"]
    assert len(reasons) == len(skipped), reasons
    for reason, part in zip(reasons, skipped, strict=True):
        assert part in reason
    return report
