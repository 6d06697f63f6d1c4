"""Names of canonical nodes."""

import onnx_graphsurgeon as gs
import pytest

from graphopt.passes.canonicalize.naming import canonical_name, module_path
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
