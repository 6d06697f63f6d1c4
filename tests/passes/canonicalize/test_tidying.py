"""Clean-up, constant folding and sharing: what is taken out, and what must stay."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.canonicalize.cleanup import clean_up
from graphopt.passes.canonicalize.fold_constants import fold_constants
from graphopt.passes.canonicalize.share_common import share_common
from tests.passes.canonicalize.spelling import constant
from tests.support.rewrite import assert_rewrites, body, parse


def stage(function) -> Stage:
    def run(model: Model, report: Report) -> None:
        infer_shapes(model)
        function(model, report)

    return Stage("test", run)


CLEAN, FOLD, SHARE = stage(clean_up), stage(fold_constants), stage(share_common)
GATHER = "agraph (float[B, 4, 6] x) => (float[B, 4, 6] y)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("agraph (float[B] x) => (float[B] y) { c = Constant<value=float {2.5}>() y = Mul(x, c) }",
         "%y = Mul(%x, f32[]{2.5})"),
        ("agraph (float[B] x) => (float[B] y) { c = Constant<value_floats=[2.5]>() y = Mul(x, c) }",
         "%y = Mul(%x, f32[1]{2.5})"),
        ("agraph (float[B] x) => (float[B] y) { i = Identity(x) y = Neg(i) }", "%y = Neg(%x)"),
        ("agraph (float[B] x) => (float[B] y) { n = Neg(x) y = Identity(n) }", "%y = Neg(%x)"),
        ("agraph (float[B] x) => (float[B] y) { c = Concat<axis=0>(x) y = Neg(c) }", "%y = Neg(%x)"),
        ("agraph (float[B] x) => (float[B] y) { c = Cast<to=1>(x) y = Neg(c) }", "%y = Neg(%x)"),
        ("agraph (float[B] x) => (float[B] y) { d = Dropout(x) y = Neg(d) }", "%y = Neg(%x)"),
        ("agraph (float[B] x) => (float[B] y) <float one = {1.0}> { m = Mul(one, x) d = Div(m, one) y = Neg(d) }",
         "%y = Neg(%x)"),
        (f"{GATHER} {{ a = Transpose<perm=[1, 2, 0]>(x) b = Transpose<perm=[2, 0, 1]>(a) y = Neg(b) }}",
         "%y = Neg(%x)"),
        (f"{GATHER} <int64[3] s = {{0, 2, 12}}, int64[3] t = {{0, -1, 6}}> "
         "{ a = Reshape(x, s) b = Reshape(a, t) y = Neg(b) }", "%y = Neg(%x)"),
    ],
)  # fmt: skip
def test_clean_up(before: str, after: str) -> None:
    assert_rewrites(before, CLEAN, after)


@pytest.mark.parametrize(
    "before",
    [
        "agraph (float[B] x) => (float16[B] y) { y = Cast<to=10>(x) }",
        "agraph (float[B] x) => (float[B] y) { y = Identity(x) }",
        "agraph (float[B] x) => (float[B] y, float[B] z) { y = Neg(x) z = Identity(y) }",
        "agraph (float[B] x) => (float[B, B] y) <float[1, 1] one = {1.0}> { y = Mul(x, one) }",
        "agraph (float[B] x) => (float[B] y) <float one = {1.0}> { y = Div(one, x) }",
        "agraph (float[B] x, bool t) => (float[B] y) <float r = {0.5}> { y = Dropout(x, r, t) }",
        f"{GATHER.replace('B, 4, 6] y', '6, B, 4] y')} {{ a = Transpose<perm=[1, 2, 0]>(x) "
        "y = Transpose<perm=[1, 2, 0]>(a) }",
        f"{GATHER.replace('B, 4, 6] y', 'B, 6, 4] y')} <int64[3] s = {{0, 2, 12}}, int64[3] t = {{0, 6, 4}}> "
        "{ a = Reshape(x, s) y = Reshape(a, t) }",
        "agraph () => (float[2] y) { y = Constant<value_floats=[1.5, 2.5]>() }",
    ],
)  # fmt: skip
def test_clean_up_leaves(before: str) -> None:
    assert_rewrites(before, CLEAN, None)


def test_clean_up_in_subgraphs() -> None:
    before = """agraph (bool c, float[B] x) => (float[B] y) {
        y = If(c) <
            then_branch = t () => (float[B] a) { i = Identity(x) a = Neg(i) },
            else_branch = e () => (float[B] b) { k = Constant<value=float {3.0}>() b = Mul(x, k) }
        >
    }"""
    model = parse(before)
    CLEAN.run(model, Report())
    assert Counter(n.op for g in model.all_graphs() for n in g.nodes) == {"If": 1, "Neg": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("agraph (float[4] x) => (float[4] y) <float[4] a = {1.0, 2.0, 3.0, 4.5}, float b = {2.0}> "
         "{ c = Add(a, b) d = Sqrt(c) y = Mul(x, d) }", "%y = Mul(%x, f32[4]{1.732051, 2, 2.236068, 2.54951})"),
        ("agraph (float[B, 4, 6] x) => (float[B, 24] y) <int64[1] i = {0}, int64[1] n = {24}> "
         "{ s = Shape(x) b = Gather(s, i) t = Concat<axis=0>(b, n) y = Reshape(x, t) }", None),
        ("agraph (float[3, 4, 6] x) => (float[3, 24] y) <int64[1] i = {0}, int64[1] n = {24}> "
         "{ s = Shape(x) b = Gather(s, i) t = Concat<axis=0>(b, n) y = Reshape(x, t) }",
         "%y = Reshape(%x, int64[2]{3, 24})"),
        ("agraph (float[B, 4, 6] x) => (float[B, 4, 3] y) <int64 two = {2}, int64[1] z = {0}, int64[1] ax = {2}> "
         "{ s = Shape(x) d = Gather(s, two) h = Div(d, two) e = Unsqueeze(h, z) y = Slice(x, z, e, ax) }",
         "%y = Slice(%x, int64[1]{0}, int64[1]{3}, int64[1]{2})"),
    ],
)  # fmt: skip
def test_fold(before: str, after: str | None) -> None:
    assert_rewrites(before, FOLD, after)


@pytest.mark.parametrize(
    "before",
    [
        # A result of 70 000 elements is no small constant.
        "agraph (float[70000] x) => (float[70000] y) <int64[1] n = {70000}, float one = {1.5}> "
        "{ c = Expand(one, n) y = Mul(x, c) }",
        "agraph (float[4] x) => (float[4] y) <float[4] m = {1.0, 2.0, 3.0, 4.0}> "
        "{ r = RandomNormalLike(m) y = Add(x, r) }",
        f"agraph (float[4] x) => (float[4] y) <{constant('q', 4, kind='int8')}, float s = {{0.5}}> "
        "{ w = DequantizeLinear(q, s) y = Mul(x, w) }",
        "agraph (float[4] x) => (float[4] y, float[4] z) <float[4] a = {1.0, 2.0, 3.0, 4.0}> "
        "{ z = Neg(a) y = Add(x, x) }",
    ],
)  # fmt: skip
def test_fold_leaves(before: str) -> None:
    assert_rewrites(before, FOLD, None)


def test_fold_never_reads_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.ir import weights

    model = parse(f"agraph (float[B, 300] x) => (float[B, 300] y) <{constant('w', 300, 300)}> "
                  "{ t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }")  # fmt: skip
    monkeypatch.setattr(weights, "read", lambda c: pytest.fail(f"'{c.name}' was read"))
    FOLD.run(model, Report())


def test_share() -> None:
    before = """agraph (float[B, S] m, float[B, S] x) => (float[B, S] y, float[B, S] z)
        <float zero = {0.0}, float nought = {0.0}, float low = {-9.0}> {
        a = Cast<to=9>(m)  b = Cast<to=9>(m)
        c = Where(a, zero, low)  d = Where(b, nought, low)
        y = Add(x, c)  z = Sub(x, d)
    }"""
    model = parse(before)
    SHARE.run(model, Report())
    assert Counter(n.op for n in model.graph.nodes) == {"Cast": 1, "Where": 1, "Add": 1, "Sub": 1}


@pytest.mark.parametrize(
    "before",
    [
        "agraph (float[B] x) => (float[B] y) <float a = {1.0}, float b = {2.0}> "
        "{ p = Mul(x, a) q = Mul(x, b) y = Sub(p, q) }",
        "agraph (float[B] x) => (float[B] y) { p = LeakyRelu<alpha=0.1>(x) q = LeakyRelu<alpha=0.2>(x) y = Sub(p, q) }",
        "agraph (float[B] x) => (float[B] y, float[B] z) { y = Neg(x) z = Neg(x) }",
        "agraph (float[B, 4] x) => (float[B, 4] y) <float[4] g = {1.0, 2.0, 3.0, 4.0}> { p, , i = "
        "LayerNormalization(x, g) q, m, j = LayerNormalization(x, g) a = Sub(p, q) b = Add(i, m) c = Add(b, j) "
        "y = Add(a, c) }",
        "agraph (float[B, 4] x) => (int64 y, int64[1] z) <int64 i = {1}, int64[1] v = {1}> "
        "{ s = Shape(x) p = Gather(s, i) q = Gather(s, v) y = Neg(p) z = Neg(q) }",
        "agraph (float[B] x) => (float[B] y) { p = RandomNormalLike(x) q = RandomNormalLike(x) y = Sub(p, q) }",
    ],
)
def test_share_leaves(before: str) -> None:
    model = parse(before)
    unchanged = Counter(n.op for n in model.graph.nodes)
    SHARE.run(model, Report())
    assert Counter(n.op for n in model.graph.nodes) == unchanged


def test_share_tells_attributes_apart_that_the_graph_does_not_hold(to_model: Any) -> None:
    """Sparse constants, which graphsurgeon has no place for."""
    made = []
    for name, value in (("p", 1.0), ("q", 2.0)):
        values = onnx.helper.make_tensor("values", onnx.TensorProto.FLOAT, [1], [value])
        indices = onnx.helper.make_tensor("indices", onnx.TensorProto.INT64, [1], [2])
        sparse = onnx.helper.make_sparse_tensor(values, indices, [4])
        made.append(onnx.helper.make_node("Constant", [], [name], sparse_value=sparse))
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy"]
    sums = [onnx.helper.make_node("Add", ["x", "p"], ["s"]), onnx.helper.make_node("Mul", ["s", "q"], ["y"])]
    graph = onnx.helper.make_graph([*made, *sums], "sparse", ports[:1], ports[1:])
    model = to_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]))
    SHARE.run(model, Report())
    assert Counter(n.op for n in model.graph.nodes)["Constant"] == 2


def test_share_compares_big_constants_by_identity() -> None:
    """Two weights of equal values stay two: reading weights to find out would cost more than it saves."""
    values = constant("w", 20, 20)
    before = f"""agraph (float[B, 20] x) => (float[B, 20] y) <{values}, {values.replace(" w ", " v ")}> {{
        p = MatMul(x, w) q = MatMul(x, v) r = MatMul(x, w) s = Sub(p, q) y = Add(s, r) }}"""
    model = parse(before)
    SHARE.run(model, Report())
    assert Counter(n.op for n in model.graph.nodes)["MatMul"] == 2


def test_tidy_models_are_left_alone() -> None:
    source = "agraph (float[B] x) => (float[B] y) { n = Neg(x) y = Exp(n) }"
    model = parse(source)
    before, report = body(model), Report()
    for each in (CLEAN, FOLD, SHARE):
        each.run(model, report)
    assert body(model) == before and not report.findings


def test_fold_keeps_dtype() -> None:
    model = parse("agraph (float16[4] x) => (float16[4] y) <float16[4] a = {15360, 16384, 16896, 17408}> "
                  "{ c = Sqrt(a) y = Mul(x, c) }")  # fmt: skip
    FOLD.run(model, Report())
    (node,) = model.graph.nodes
    assert node.inputs[1].values.dtype == np.float16
