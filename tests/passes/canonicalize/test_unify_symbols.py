"""Dimensions that shape inference invented become those that the canonical form implies."""

import onnx_graphsurgeon as gs

from graphopt.core.report import Report
from graphopt.passes.canonicalize.unify_symbols import unify_symbols
from tests.support.rewrite import parse

HEADER = '<ir_version: 8, opset_import: ["": 18, "graphopt": 1]>\n'
QUERIES = "float[B, 4, S, 8] q, float[B, 2, L, 8] k, float[B, 2, L, 6] v, float[1, 1, 1, 1] m"


def shapes(source: str, **invented: list) -> dict[str, list]:
    model = parse(HEADER + source)
    tensors = model.graph.tensors()
    for name, shape in invented.items():
        tensors[name].shape = shape
    unify_symbols(model, Report())
    return {name: t.shape for name, t in tensors.items() if isinstance(t, gs.Variable)}


def test_attention_gives_the_shape_of_q() -> None:
    source = f"agraph ({QUERIES}) => (float[B, 4, S, 6] y) {{ a = graphopt.Attention(q, k, v, m) y = Neg(a) }}"
    assert shapes(source, a=["unk__0", 4, "unk__1", 6])["a"] == ["B", 4, "S", 6]


def test_symbols_are_replaced_wherever_they_stand() -> None:
    source = """agraph (float[B, S, 4] x, float[4] g) => (float[B, S, 4] y) {
        t = graphopt.Gelu(x) u = Neg(t) y = Neg(u) }"""
    found = shapes(source, t=["unk__0", "unk__1", 4], u=["unk__0", "unk__1", 4])
    assert found["t"] == found["u"] == ["B", "S", 4]


def test_sums_of_equal_shapes() -> None:
    source = "agraph (float[B, S, 4] x, float[B, S, 4] z) => (float[B, S, 4] y) { t = Add(x, z) y = Neg(t) }"
    assert shapes(source, t=["unk__0", "unk__1", 4])["t"] == ["B", "S", 4]


def test_sums_that_may_broadcast_say_nothing() -> None:
    source = "agraph (float[B, S, 4] x, float[C, S, 4] z) => (float[B, S, 4] y) { t = Add(x, z) y = Neg(t) }"
    assert shapes(source, t=["unk__0", "unk__1", 4])["t"] == ["unk__0", "unk__1", 4]


def test_names_of_the_model_stay() -> None:
    source = "agraph (float[B, S, 4] x) => (float[B, S, 4] y) { t = graphopt.Gelu(x) y = Neg(t) }"
    assert shapes(source, t=["rows", "unk__1", 4])["t"] == ["rows", "S", 4]
