"""Products with a constant matrix: each spelling, and each reason to leave one alone."""

import numpy as np
import pytest

from graphopt.passes.canonicalize import linear
from tests.passes.canonicalize.spelling import constant, inferred
from tests.support.rewrite import assert_rewrites, parse

RULES = inferred(linear.RULES)
W, V = constant("w", 4, 3), constant("v", 3, 4)
#: What BIAS_RULES see: the Linears of RULES.
BOTH = inferred(linear.RULES), inferred(linear.BIAS_RULES)


def spelled(nodes: str, *, x: str = "float[B, 4] x", y: str = "float[B, 3] y", constants: str = W) -> str:
    return f"agraph ({x}) => ({y}) <{constants}> {{ {nodes} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (spelled("y = MatMul(x, w)"), "%y = graphopt.Linear(%x, @w: f32[4x3]) trans_w=0"),
        (
            spelled("t = Transpose<perm=[1, 0]>(v) y = MatMul(x, t)", constants=V),
            "%y = graphopt.Linear(%x, @v: f32[3x4]) trans_w=1",
        ),
        (
            spelled("t = Transpose(v) y = MatMul(x, t)", constants=V),
            "%y = graphopt.Linear(%x, @v: f32[3x4]) trans_w=1",
        ),
        (spelled("y = Gemm(x, w)"), "%y = graphopt.Linear(%x, @w: f32[4x3]) trans_w=0"),
        (spelled("y = Gemm<beta=2.0>(x, w)"), "%y = graphopt.Linear(%x, @w: f32[4x3]) trans_w=0"),
        (spelled("y = Gemm<transB=1>(x, v)", constants=V), "%y = graphopt.Linear(%x, @v: f32[3x4]) trans_w=1"),
        (
            spelled("y = Gemm<transB=1>(x, v, c)", constants=f"{V}, {constant('c', 3)}"),
            None,
        ),
        (
            spelled("t = Transpose(w) y = Gemm<transB=1>(x, t)"),
            "%y = graphopt.Linear(%x, @w: f32[4x3]) trans_w=0",
        ),
        (spelled('y = Einsum<equation="bk,kn->bn">(x, w)'), "%y = graphopt.Linear(%x, @w: f32[4x3]) trans_w=0"),
        (
            spelled('y = Einsum<equation=" ...i , oi -> ...o">(x, v)', constants=V),
            "%y = graphopt.Linear(%x, @v: f32[3x4]) trans_w=1",
        ),
        (
            spelled(
                'y = Einsum<equation="oi,bti->bto">(v, x)', constants=V, x="float[B, T, 4] x", y="float[B, T, 3] y"
            ),
            "%y = graphopt.Linear(%x, @v: f32[3x4]) trans_w=1",
        ),
    ],
)
def test_spellings(before: str, after: str | None) -> None:
    if after is None:
        model = parse(before)
        RULES.run(model, report=_report())
        (node,) = model.graph.nodes
        assert (node.op, node.attrs["trans_w"], [t.name for t in node.inputs]) == ("LinearBias", 1, ["x", "v", "c"])
    else:
        assert_rewrites(before, RULES, after)


def _report():
    from graphopt.core.report import Report

    return Report()


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (spelled("y = MatMul(x, w)", x="float[B, 2, 4] x", y="float[B, 2, 3] y",
                 constants=constant("w", 2, 4, 3)), "has rank 3"),
        (spelled("y = MatMul(x, w)", y="float[B, 0] y", constants="float[4, 0] w = {}"), "has shape [4, 0]"),
        (spelled("y = MatMul(x, w)", x="double[B, 4] x", y="double[B, 3] y",
                 constants=constant("w", 4, 3, kind="double")), "is float64, not"),
        (spelled("y = MatMul(x, w)", x="float[4] x", y="float[3] y"), "has rank 1"),
        (spelled("y = MatMul(w, x)", x="float[3, B] x", y="float[4, B] y"), "'w' is the left operand"),
        (spelled("d = DequantizeLinear(q, s) y = MatMul(x, d)",
                 constants=f"{constant('q', 4, 3, kind='int8')}, float s = {{0.5}}"), "'q' is already quantized"),
        (spelled("d = DequantizeLinear(q, s) y = Gemm<transB=1>(x, d)",
                 constants=f"{constant('q', 3, 4, kind='int8')}, float s = {{0.5}}"), "'q' is already quantized"),
        (spelled("d = DequantizeLinear(q, s) t = Transpose<perm=[1, 0]>(d) y = MatMul(x, t)",
                 constants=f"{constant('q', 3, 4, kind='int8')}, float s = {{0.5}}"), "'q' is already quantized"),
        (spelled('y = Einsum<equation="bsk,khd->bshd">(x, w)', x="float[B, S, 4] x", y="float[B, S, 2, 3] y",
                 constants=constant("w", 4, 2, 3)), "equation 'bsk,khd->bshd' is no product of the last axis of 'x'"),
        (spelled('y = Einsum<equation="kb,kn->bn">(x, w)', x="float[4, B] x"), "'kb,kn->bn' is no product"),
        (spelled('y = Einsum<equation="bk,kn->nb">(x, w)', y="float[3, B] y"), "'bk,kn->nb' is no product"),
        (spelled('y = Einsum<equation="bk,kn">(x, w)'), "'bk,kn' is no product"),
        (spelled('y = Einsum<equation="...k,kn->...n">(x, w)', x="float[4] x", y="float[3] y"), "has rank 1"),
        (spelled("y = Gemm<transA=1>(x, w)", x="float[4, B] x"), "transA is set"),
        (spelled("y = Gemm<alpha=0.5>(x, w)"), "alpha is 0.5, beta is 1.0"),
        (spelled("y = Gemm<beta=0.5>(x, w, c)", constants=f"{W}, {constant('c', 3)}"), "alpha is 1.0, beta is 0.5"),
        (spelled("y = Gemm(x, w, c)", constants=f"{W}, {constant('c', 1, 3)}"), "C 'c' is not a constant of shape [3]"),
        (spelled("y = Gemm(x, w, c)", x="float[B, 4] x, float[3] c"), "C 'c' is not a constant of shape [3]"),
        (spelled("y = Gemm(x, w)", constants=constant("w", 4, 3, kind="double"), x="double[B, 4] x",
                 y="double[B, 3] y"), "is float64"),
    ],
)  # fmt: skip
def test_refusals(before: str, reason: str) -> None:
    assert_rewrites(before, RULES, None, skipped=[reason])


def test_weight_that_is_an_output() -> None:
    before = f"agraph (float[B, 4] x) => (float[B, 3] y, float[4, 3] w) <{W}> {{ y = MatMul(x, w) }}"
    assert_rewrites(before, RULES, None, skipped=["weight 'w' is an output"])


def test_products_of_activations_are_no_business_of_linears() -> None:
    assert_rewrites("agraph (float[B, 4] x, float[4, 3] w) => (float[B, 3] y) { y = MatMul(x, w) }", RULES, None)


def test_tied_weight_read_both_ways() -> None:
    """One tensor, gathered from, multiplied by and multiplied by transposed."""
    model = parse(
        f"""agraph (int64[B] i, float[B, 4] x) => (float[B, 3] y, float[B, 4] z) <{V}> {{
            e = Gather(v, i)
            t = Transpose<perm=[1, 0]>(v)
            y = MatMul(e, t)
            z = MatMul(y, v)
        }}"""
    )
    RULES.run(model, _report())
    reads = {n.op: (n.inputs[-1].name, n.attrs.get("trans_w")) for n in model.graph.nodes}
    assert reads == {"Gather": ("i", None), "Linear": ("v", 0)}
    transposed = [n.attrs["trans_w"] for n in model.graph.nodes if n.op == "Linear"]
    assert transposed == [1, 0]
    assert len({id(n.inputs[1]) for n in model.graph.nodes if n.op == "Linear"}) == 1


def with_bias(constants: str, add: str, *, x: str = "float[B, 4] x", y: str = "float[B, 3] y") -> str:
    return spelled(f"p = MatMul(x, w) {add}", constants=f"{W}, {constants}", x=x, y=y)


@pytest.mark.parametrize("add", ["y = Add(p, b)", "y = Add(b, p)"])
@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_bias(add: str, shape: tuple[int, ...]) -> None:
    model = parse(with_bias(constant("b", *shape), add))
    for stage in BOTH:
        stage.run(model, _report())
    (node,) = model.graph.nodes
    assert node.op == "LinearBias" and list(node.inputs[2].shape) == [3]
    assert np.array_equal(node.inputs[2].values, parse(with_bias(constant("b", 3), add)).graph.nodes[1].inputs[
        1 if add.endswith("b)") else 0].values)  # fmt: skip


@pytest.mark.parametrize(
    ("constants", "add", "reason"),
    [
        (constant("b", 3), "q = Add(p, b) y = Add(q, p)", "also read without bias 'b'"),
        ("float b = {2.5}", "y = Add(p, b)", "'b' of shape [] is no bias of 3 channels"),
        (constant("b", 2, 3), "y = Add(p, b)", "no bias of 3 channels"),
    ],
)
def test_bias_refusals(constants: str, add: str, reason: str) -> None:
    model, report = parse(with_bias(constants, add, x="float[2, 4] x", y="float[2, 3] y")), _report()
    for stage in BOTH:
        stage.run(model, report)
    assert [f.reason for f in report.findings if f.status == "skipped" and reason in f.reason]
    assert "Linear" in {n.op for n in model.graph.nodes}


def test_bias_that_may_widen() -> None:
    """(1, 1, 3) added to a product of rank 2 gives rank 3."""
    model, report = parse(with_bias(constant("b", 1, 1, 3), "y = Add(p, b)", y="float[1, B, 3] y")), _report()
    for stage in BOTH:
        stage.run(model, report)
    assert ["may widen" in f.reason for f in report.findings if f.status == "skipped"] == [True]


def test_linear_bias_keeps_the_products_name() -> None:
    model = parse(with_bias(constant("b", 3), "y = Add(p, b)"))
    model.graph.nodes[0].name, model.graph.nodes[1].name = "fc/MatMul", "fc/Add"
    for stage in BOTH:
        stage.run(model, _report())
    assert [n.name for n in model.graph.nodes] == ["fc/MatMul"]
