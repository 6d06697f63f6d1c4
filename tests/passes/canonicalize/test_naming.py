"""Names of canonical nodes."""

import onnx_graphsurgeon as gs
import pytest

from graphopt.core.report import Report
from graphopt.passes.canonicalize.naming import canonical_name, module_path, tell_apart
from tests.support.rewrite import parse

SCOPES = "pkg.torch.onnx.name_scopes"


def node(metadata: dict[str, str], name: str = "node_linear_3") -> gs.Node:
    made = gs.Node("MatMul", name)
    made.metadata = metadata
    return made


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'model', 'model.layers.0', 'model.layers.0.mlp.up_proj', 'linear_5']", "model.layers.0.mlp.up_proj"),
        ("['', 'matmul']", None),
        ("['matmul']", None),
        ("[", None),
        ("not a list", None),
        ("{'a': 1}", None),
        ("", None),
    ],
)
def test_module_path(scopes: str, path: str | None) -> None:
    assert module_path(node({SCOPES: scopes})) == path


def test_nodes_without_metadata() -> None:
    assert module_path(gs.Node("MatMul", "m")) is None
    assert module_path(node({"namespace": "x"})) is None


def test_canonical_name() -> None:
    model = parse("agraph (float[B] x) => (float[B] y) { y = Neg(x) }")
    model.graph.nodes[0].name = "block.attn"
    inside = node({SCOPES: "['', 'block.attn', 'matmul']"})
    assert canonical_name(model, inside) == "block.attn_1"
    assert canonical_name(model, inside, "attention") == "block.attn.attention"
    assert canonical_name(model, node({}, "/fc/MatMul"), "ignored") == "/fc/MatMul"


def test_nodes_without_a_name_are_called_after_their_output() -> None:
    model = parse("agraph (float[B] x) => (float[B] y) { y = Neg(x) }")
    (unnamed,) = model.graph.nodes
    unnamed.name = ""
    assert canonical_name(model, unnamed) == "y_Neg"


def test_nodes_of_one_name_are_told_apart_in_every_scope() -> None:
    model = parse("""agraph (bool c, float[B] x) => (float[B] y) {
        [fc] a = Neg(x)
        [fc] fc_1 = Abs(a)
        [if] y = If(c) <
            then_branch = t () => (float[B] p) { [fc] p = Neg(fc_1) },
            else_branch = e () => (float[B] q) { [other] q = Abs(fc_1) }
        >
    }""")
    report = Report()
    tell_apart(model, report)
    # 'fc_1' is a tensor.
    assert [n.name for g in model.all_graphs() for n in g.nodes] == ["fc", "fc_2", "if", "fc_3", "other"]
    assert [(f.status, f.node, f.reason) for f in report.findings] == [
        ("note", "fc", "3 nodes have this name; the others are called 'fc_2' to 'fc_3'")
    ]


def test_names_that_differ_are_left_alone() -> None:
    model, report = parse("agraph (float[B] x) => (float[B] y) { [a] m = Neg(x) [b] y = Neg(m) }"), Report()
    tell_apart(model, report)
    assert [n.name for n in model.graph.nodes] == ["a", "b"] and not report.findings
