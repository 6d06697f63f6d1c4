"""Norms written out: each spelling against numpy, and each reason to leave one alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, norm, norm_ops
from tests.passes.canonicalize.spelling import MICROSOFT, constant, header, inferred
from tests.support.arrays import activations
from tests.support.rewrite import assert_rewrites, parse
from tests.support.runtime import run_ort, run_reference

RULES = inferred((*norm.RULES, *norm_ops.RULES))
GAMMA, BETA = constant("gamma", 4), constant("beta", 4, seed=1)
FIXED = f"{GAMMA}, {BETA}, float two = {{2.0}}, float eps = {{1e-3}}, float one = {{1.0}}, float half = {{-0.5}}"
#: float32: 8 half ulps. float16: the canonical op rounds γ·(x·r) once instead of twice.
TOLERANCE = {1: 8 * 2.0**-24, 10: 2 * 2.0**-11}


def spelled(nodes: str, *, x: str = "float[B, 4] x", y: str = "float[B, 4] y", constants: str = FIXED) -> str:
    return f"{header(17)}agraph ({x}) => ({y}) <{constants}> {{ {nodes} }}"


SQUARES = {
    "pow": "s = Pow(x, two)",
    "mul": "s = Mul(x, x)",
}
QUOTIENTS = {
    "reciprocal": "r = Sqrt(e) i = Reciprocal(r) n = Mul(x, i)",
    "one over": "r = Sqrt(e) i = Div(one, r) n = Mul(i, x)",
    "div": "r = Sqrt(e) n = Div(x, r)",
    "power": "i = Pow(e, half) n = Mul(x, i)",
}
GAINS = {"right": "y = Mul(n, gamma)", "left": "y = Mul(gamma, n)"}


def assert_same(source: str, expected: str, rng: np.random.Generator, tmp_path: Path, dtype=np.float32) -> ir.Model:
    """The graph becomes one node ``expected`` (and Casts) that gives what it gave."""
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes] == [expected]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {t.name: activations(rng, 5, 4, dtype=dtype) for t in model.graph.inputs}
    (want,), (got,) = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    assert got.dtype == want.dtype
    error = np.linalg.norm((got - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64))
    assert error <= TOLERANCE[onnx.helper.np_dtype_to_tensor_dtype(want.dtype)]
    return model


@pytest.mark.parametrize("gain", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("quotient", QUOTIENTS.values(), ids=QUOTIENTS)
@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES)
def test_rms_norm(square: str, quotient: str, gain: str, rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(f"{square} m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) {quotient} {gain}")
    model = assert_same(source, "RMSNorm", rng, tmp_path)
    assert model.graph.nodes[0].attrs["epsilon"] == pytest.approx(1e-3)


@pytest.mark.parametrize("quotient", QUOTIENTS.values(), ids=QUOTIENTS)
@pytest.mark.parametrize("shift", ["y = Add(g, beta)", "y = Add(beta, g)", "y = Identity(g)"])
def test_layer_norm(quotient: str, shift: str, rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = f"""a = ReduceMean<axes=[1]>(x) d = Sub(x, a) s = Pow(d, two) m = ReduceMean<axes=[-1]>(s) e = Add(eps, m)
        {quotient.replace("x", "d")} g = Mul(n, gamma) {shift}"""
    if shift.startswith("y = Identity"):
        nodes = nodes.replace("g = Mul(n, gamma) y = Identity(g)", "y = Mul(n, gamma)")
    model = assert_same(spelled(nodes), "LayerNorm", rng, tmp_path)
    beta = model.graph.nodes[0].inputs[2]
    assert (beta.name == "beta") == ("beta" in shift)


def test_gain_after_the_cast(rng: np.random.Generator, tmp_path: Path) -> None:
    """float16 as transformers writes it: float32 inside two Casts, the gain in float16."""
    half = FIXED.replace(GAMMA, constant("gamma", 4, kind="float16"))
    nodes = """c = Cast<to=1>(x) s = Pow(c, two) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e)
        i = Reciprocal(r) n = Mul(c, i) h = Cast<to=10>(n) y = Mul(gamma, h)"""
    source = spelled(nodes, x="float16[B, 4] x", y="float16[B, 4] y", constants=half)
    assert_same(source, "RMSNorm", rng, tmp_path, np.float16)


def test_gain_before_the_cast(rng: np.random.Generator, tmp_path: Path) -> None:
    """float32 gain that is exact in float16: the final Cast is taken in."""
    exact = FIXED.replace(GAMMA, "float[4] gamma = {0.5, 1.25, -2.0, 3.0}")
    nodes = """c = Cast<to=1>(x) s = Pow(c, two) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e)
        n = Div(c, r) g = Mul(gamma, n) y = Cast<to=10>(g)"""
    source = spelled(nodes, x="float16[B, 4] x", y="float16[B, 4] y", constants=exact)
    model = assert_same(source, "RMSNorm", rng, tmp_path, np.float16)
    assert model.graph.nodes[0].inputs[0].name == "x"


def test_gain_that_float16_cannot_hold_stays_float32() -> None:
    nodes = """c = Cast<to=1>(x) s = Pow(c, two) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e)
        n = Div(c, r) g = Mul(gamma, n) y = Cast<to=10>(g)"""
    inexact = FIXED.replace(GAMMA, "float[4] gamma = {0.5, 1.0001, -2.0, 3.0}")
    model = parse(spelled(nodes, x="float16[B, 4] x", y="float16[B, 4] y", constants=inexact))
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes] == ["Cast", "RMSNorm", "Cast"]


REST = "r = Sqrt(e) n = Div(x, r) y = Mul(n, gamma)"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"s = Mul(x, x) m = ReduceMean<axes=[0]>(s) e = Add(m, eps) {REST}", "not over the last axis"),
        (f"s = Mul(x, x) m = ReduceMean<axes=[0, 1]>(s) e = Add(m, eps) {REST}", "not over the last axis"),
        (f"s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Sub(m, eps) {REST}", "no epsilon is added"),
        (f"s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, m) {REST}", "epsilon is not a constant scalar"),
        (f"s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, beta) {REST}", "epsilon is not a constant scalar"),
        ("s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) y = Mul(e, gamma)", "not used as d / sqrt"),
        ("s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e) y = Add(r, x)",
         "not used as d / sqrt"),
        ("z = Neg(x) s = Mul(z, z) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) " + REST,
         "'z' is squared but 'x' is normalized"),
        ("s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e) y = Div(x, r)", "no constant gain"),
        ("s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e) n = Div(x, r) y = Mul(n, x)",
         "no constant gain"),
        ("s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e) n = Div(x, r) y = Mul(n, one)",
         "no constant gain"),
    ],
)  # fmt: skip
def test_refusals(nodes: str, reason: str) -> None:
    assert_rewrites(spelled(nodes), RULES, None, skipped=[reason])


def test_gain_of_another_width() -> None:
    constants = f"{constant('gamma', 1)}, float eps = {{1e-3}}"
    nodes = f"s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) {REST}"
    assert_rewrites(spelled(nodes, constants=constants), RULES, None, skipped=["gain 'gamma' has 1 values for 4"])


@pytest.mark.parametrize("x", ["float[B, 4] x", "float[] x"])
def test_gain_that_may_widen_the_result(x: str) -> None:
    constants = f"{constant('gamma', 1, 1, 4)}, float eps = {{1e-3}}"
    nodes = f"s = Mul(x, x) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) {REST}"
    source = spelled(nodes, x=x, y="float[1, B, 4] y", constants=constants)
    assert_rewrites(source, RULES, None, skipped=["gain 'gamma' of shape [1, 1, 4] may widen the result"])


def test_shift_that_may_widen_the_result() -> None:
    constants = f"{constant('gamma', 4)}, {constant('beta', 1, 1, 4)}, float eps = {{1e-3}}"
    nodes = """a = ReduceMean<axes=[-1]>(x) d = Sub(x, a) s = Mul(d, d) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps)
        r = Sqrt(e) n = Div(d, r) g = Mul(n, gamma) y = Add(g, beta)"""
    model = parse(spelled(nodes, y="float[1, B, 4] y", constants=constants))
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes] == ["LayerNorm", "Add"]


def test_input_of_another_type_than_the_result() -> None:
    half = FIXED.replace(GAMMA, constant("gamma", 4, kind="float16"))
    nodes = """s = Pow(x, two) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e) n = Div(x, r)
        h = Cast<to=10>(n) y = Mul(gamma, h)"""
    source = spelled(nodes, y="float16[B, 4] y", constants=half)
    assert_rewrites(source, RULES, None, skipped=["type of input 'x' is not known or is not that of the result"])


def test_means_of_other_things_are_not_mentioned() -> None:
    assert_rewrites(spelled("y = ReduceMean<axes=[-1]>(x)", y="float[B, 1] y"), RULES, None)


def node_graph(node: str, *, opset: int = 18, x: str = "float[B, 4] x", y: str = "float[B, 4] y") -> str:
    top = MICROSOFT if "microsoft" in node else header(opset)
    constants = f"{GAMMA}, {BETA}, {constant('bias', 4, seed=2)}, {constant('square', 1, 4)}"
    return f"{top}agraph ({x}) => ({y}) <{constants}> {{ {node} }}"


@pytest.mark.parametrize(
    ("node", "opset", "after"),
    [
        ("y = LayerNormalization<epsilon=0.01>(x, gamma, beta)", 17, "LayerNorm(%x, {g}, {b}) epsilon=0.01"),
        ("y = LayerNormalization<axis=1>(x, gamma, beta)", 18, "LayerNorm(%x, {g}, {b}) epsilon=1e-05"),
        ("y = RMSNormalization<epsilon=0.01>(x, gamma)", 23, "RMSNorm(%x, {g}) epsilon=0.01"),
        ("y = SimplifiedLayerNormalization<epsilon=0.01>(x, gamma)", 18, "RMSNorm(%x, {g}) epsilon=0.01"),
    ],
)
def test_one_node(node: str, opset: int, after: str) -> None:
    model = parse(node_graph(node, opset=opset))
    RULES.run(model, Report())
    (made,) = model.graph.nodes
    wanted, epsilon = after.split("(")[0], float(after.split("=")[1])
    assert made.op == wanted and made.attrs["epsilon"] == pytest.approx(epsilon)
    assert [t.name for t in made.inputs] == ["x", "gamma", "beta"][: len(made.inputs)]


def test_layer_normalization_without_shift(rng: np.random.Generator, tmp_path: Path) -> None:
    source = node_graph("y = LayerNormalization(x, gamma)", opset=17)
    assert_same(source, "LayerNorm", rng, tmp_path)


@pytest.mark.parametrize("bias", [", bias", ""])
@pytest.mark.parametrize("total", [", , , t", ""])
@pytest.mark.parametrize("op", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_skip_norms(op: str, total: str, bias: str, rng: np.random.Generator, tmp_path: Path) -> None:
    beta = ", beta" if op == "SkipLayerNormalization" else ""
    node = f"y{total} = com.microsoft.{op}<epsilon=0.01>(x, r, gamma{beta}{bias})"
    outputs = "float[B, 4] y, float[B, 4] t" if total else "float[B, 4] y"
    source = node_graph(node, x="float[B, 4] x, float[B, 4] r", y=outputs)
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    expected = "RMSNorm" if "Simplified" in op else "LayerNorm"
    assert [n.op for n in model.graph.nodes] == ["Add"] * (2 if bias else 1) + [expected]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {name: activations(rng, 3, 4) for name in "xr"}
    before, after = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    for want, got in zip(before, after, strict=True):
        assert np.linalg.norm(got - want) <= TOLERANCE[1] * np.linalg.norm(want)


@pytest.mark.parametrize("op", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_skip_norms_that_do_not_say_epsilon(op: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Where rows are small, it decides."""
    source = node_graph(f"y = com.microsoft.{op}(x, r, gamma)", x="float[B, 4] x, float[B, 4] r")
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {name: activations(rng, 3, 4) * np.float32(1e-3) for name in "xr"}
    (want,), (got,) = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    assert np.linalg.norm(got - want) <= TOLERANCE[1] * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("node", "x", "y", "reason"),
    [
        ("y = LayerNormalization(x, g)", "float[B, 4] x, float[4] g", "float[B, 4] y",
         "gain 'g' is not a constant vector"),
        ("y = LayerNormalization(x, gamma, b)", "float[B, 4] x, float[4] b", "float[B, 4] y",
         "shift 'b' is not a constant vector"),
        ("y, m = LayerNormalization(x, gamma)", "float[B, 4] x", "float[B, 4] y, float[B, 1] m",
         "'m' of row statistics is read"),
        ("y = LayerNormalization<axis=0>(x, square)", "float[1, 4] x", "float[1, 4] y", "axis 0 is not the last one"),
        ("y = LayerNormalization(x, square)", "float[1, 4] x", "float[1, 4] y",
         "gain 'square' is not a constant vector"),
        ("y = SimplifiedLayerNormalization(x, gamma)", "float16[B, 4] x", "float16[B, 4] y", "types of input and gain"),
        ("y = com.microsoft.SkipLayerNormalization(x, r, gamma)", "float[B, 2, 4] x, float[2, 4] r", "float[B, 2, 4] y",
         "skip 'r' has rank 2, the input has 3"),
        ("y, m = com.microsoft.SkipLayerNormalization(x, r, gamma)", "float[B, 2, 4] x, float[B, 2, 4] r",
         "float[B, 2, 4] y, float[B, 2, 1] m", "'m' of row statistics is read"),
    ],
)  # fmt: skip
def test_node_refusals(node: str, x: str, y: str, reason: str) -> None:
    assert_rewrites(node_graph(node, x=x, y=y), RULES, None, skipped=[reason])


def test_bfloat16(rng: np.random.Generator, tmp_path: Path) -> None:
    """ONNX's enum stands for bfloat16 where numpy has no such type."""
    half = FIXED.replace(GAMMA, constant("gamma", 4, kind="bfloat16", values=(1.0, 0.5, 2.0, 16.0)))
    nodes = """c = Cast<to=1>(x) s = Pow(c, two) m = ReduceMean<axes=[-1]>(s) e = Add(m, eps) r = Sqrt(e)
        i = Reciprocal(r) n = Mul(c, i) h = Cast<to=16>(n) y = Mul(gamma, h)"""
    model = parse(spelled(nodes, x="bfloat16[B, 4] x", y="bfloat16[B, 4] y", constants=half))
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes] == ["RMSNorm"]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {"x": activations(rng, 3, 4, dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))}
    (want,), (got,) = (run_reference(onnx.load(tmp_path / f"{name}.onnx"), feeds) for name in ("before", "after"))
    # Two roundings of half an ulp against one; powers of two as gains make them fall together.
    assert np.linalg.norm((got - want).astype(np.float32)) <= 2.0**-8 * np.linalg.norm(want.astype(np.float32))
