"""What the report says about operators outside the canonical form."""

from graphopt.core.report import Report
from graphopt.passes.canonicalize.leftovers import note_leftovers
from tests.passes.canonicalize.spelling import MICROSOFT
from tests.support.rewrite import parse


def notes(source: str) -> list[tuple[str, str]]:
    report = Report()
    model = parse(source)
    for i, node in enumerate(model.graph.nodes):
        node.name = f"n{i}"
    note_leftovers(model, report)
    assert {f.status for f in report.findings} <= {"note", "skipped"}
    return [(f.node, f.reason) for f in report.findings]


def test_foreign_operators_are_named() -> None:
    source = f"{MICROSOFT}agraph (float[B, 4] x) => (float[B, 4] y) {{ t = Neg(x) y = com.microsoft.QuickGelu(t) }}"
    ((node, reason),) = notes(source)
    assert node == "n1" and reason.startswith("com.microsoft.QuickGelu stays; TensorRT needs a plugin")


def test_products_of_integers_were_linears() -> None:
    source = """<ir_version: 8, opset_import: ["": 18]>
        agraph (uint8[B, 4] x, int8[4, 4] w) => (int32[B, 4] y) { t = MatMulInteger(x, w) y = Neg(t) }"""
    assert notes(source) == [("n0", "it is quantized already; optimize the model that it was made from")]


def test_functions_are_left_alone() -> None:
    source = """<ir_version: 8, opset_import: ["": 18, "local": 1]>
        agraph (float[B, 4] x) => (float[B, 4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 18]> twice (a) => (b) { b = Add(a, a) }"""
    assert notes(source) == [("n0", "a call of function local.twice, left as it is")]


def test_standard_and_canonical_nodes_are_not_mentioned() -> None:
    source = """<ir_version: 8, opset_import: ["": 18, "graphopt": 1]>
        agraph (float[B, 4] x) => (float[B, 4] y) { t = graphopt.Gelu(x) y = Neg(t) }"""
    assert notes(source) == []
