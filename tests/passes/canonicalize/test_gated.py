"""Activations and gates: each spelling against ONNX Runtime, and each reason to leave one alone."""

import math
from pathlib import Path

import numpy as np
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, gated
from tests.passes.canonicalize.spelling import MICROSOFT, constant, header, inferred
from tests.support.arrays import activations
from tests.support.rewrite import parse
from tests.support.runtime import run_ort

STAGES = inferred(gated.RULES), inferred(gated.GATE_RULES)
#: A handful of float32 operations whose order differs, and two implementations of erf and tanh.
TOLERANCE = 8 * 2.0**-24
CONSTANTS = ", ".join(
    f"float {name} = {{{value!r}}}"
    for name, value in {
        "root2": math.sqrt(2), "iroot2": math.sqrt(0.5), "one": 1.0, "half": 0.5, "three": 3.0, "k": 0.044715,
        "rootpi": math.sqrt(2 / math.pi), "two": 2.0, "off": 1.3,
    }.items()
)  # fmt: skip


def spelled(nodes: str, *, x: str = "float[B, 4] x, float[B, 4] u", more: str = "", top: str = header(18)) -> str:
    return f"{top}agraph ({x}) => (float[B, 4] y) <{CONSTANTS}{more}> {{ {nodes} }}"


def run(source: str) -> tuple[ir.Model, Report]:
    model, report = parse(source), Report()
    for stage in STAGES:
        stage.run(model, report)
    return model, report


ERF = "d = Div(x, root2) e = Erf(d) s = Add(e, one)"
TANH = "p = Pow(x, three) q = Mul(k, p) r = Add(x, q) c = Mul(rootpi, r) t = Tanh(c) s = Add(t, one)"
CUBE = "p = Mul(x, x) p3 = Mul(x, p) q = Mul(p3, k) r = Add(q, x) c = Mul(r, rootpi) t = Tanh(c) s = Add(one, t)"
SILU = "s = Sigmoid(x) g = Mul(x, s)"


@pytest.mark.parametrize(
    ("nodes", "op"),
    [
        (f"{ERF} h = Mul(half, s) y = Mul(x, h)", "Gelu"),
        (f"{ERF} h = Mul(x, s) y = Mul(h, half)", "Gelu"),
        (f"{ERF} h = Mul(x, half) y = Mul(h, s)", "Gelu"),
        (f"{ERF} h = Mul(half, x) y = Mul(s, h)", "Gelu"),
        (f"{ERF.replace('Div(x, root2)', 'Mul(iroot2, x)')} h = Mul(half, s) y = Mul(h, x)", "Gelu"),
        (f"{TANH} h = Mul(half, s) y = Mul(x, h)", "GeluTanh"),
        (f"{CUBE} h = Mul(x, s) y = Mul(half, h)", "GeluTanh"),
        (f"{ERF} h = Mul(half, s) g = Mul(x, h) y = Mul(g, u)", "GatedGelu"),
        (f"{TANH} h = Mul(half, s) g = Mul(x, h) y = Mul(u, g)", "GatedGeluTanh"),
        (f"{SILU} y = Mul(g, u)", "GatedSilu"),
        (f"{SILU} y = Mul(u, g)", "GatedSilu"),
        ("s = Sigmoid(x) g = Mul(s, x) y = Mul(g, x)", "GatedSilu"),
    ],
)
def test_spellings(nodes: str, op: str, rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(nodes)
    model, _ = run(source)
    assert [n.op for n in model.graph.nodes] == [op]
    if op.startswith("Gated"):
        assert model.graph.nodes[0].inputs[0].name == "x"
    assert_same(source, model, rng, tmp_path)


def assert_same(source: str, model: ir.Model, rng: np.random.Generator, tmp_path: Path) -> None:
    ir.save(parse(source), tmp_path / "before.onnx")
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {t.name: activations(rng, 9, 4) for t in model.graph.inputs}
    (want,), (got,) = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("node", "top", "ops"),
    [
        ("y = Gelu(x)", header(20), ["Gelu"]),
        ('y = Gelu<approximate="tanh">(x)', header(20), ["GeluTanh"]),
        ("y = com.microsoft.Gelu(x)", MICROSOFT, ["Gelu"]),
        ("y = com.microsoft.FastGelu(x)", MICROSOFT, ["GeluTanh"]),
        ("y = com.microsoft.FastGelu(x, b)", MICROSOFT, ["Add", "GeluTanh"]),
        ("y = com.microsoft.BiasGelu(x, b)", MICROSOFT, ["Add", "Gelu"]),
        ("g = com.microsoft.QuickGelu<alpha=1.0>(x) y = Mul(g, u)", MICROSOFT, ["GatedSilu"]),
        ("g = Gelu(u) y = Mul(x, g)", header(20), ["GatedGelu"]),
    ],
)
def test_one_node(node: str, top: str, ops: list[str], rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(node, top=top, more=f", {constant('b', 4)}")
    model, _ = run(source)
    assert [n.op for n in model.graph.nodes] == ops
    assert_same(source, model, rng, tmp_path)


def test_shared_product_is_not_taken_apart(rng: np.random.Generator, tmp_path: Path) -> None:
    """x/2 is read by something else, too: it stays, and GELU is still found."""
    source = spelled(f"{ERF} h = Mul(x, half) g = Mul(h, s) y = Add(g, h)")
    model, report = run(source)
    assert "Gelu" not in {n.op for n in model.graph.nodes}
    assert [f.status for f in report.findings] == ["skipped"]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"{ERF.replace('root2', 'off')} h = Mul(half, s) y = Mul(x, h)", "argument of Erf is not x / sqrt(2)"),
        ("d = Div(x, root2) e = Erf(d) s = Add(e, half) h = Mul(half, s) y = Mul(x, h)", "1 is not added to the Erf"),
        (f"{ERF} z = Add(e, x) h = Mul(half, s) g = Mul(x, h) y = Add(g, z)", "1 is not added to the Erf"),
        (f"{ERF} h = Mul(two, s) y = Mul(x, h)", "1 + erf is not multiplied by 'x' and by one half"),
        (f"{TANH} h = Mul(half, s) y = Mul(u, h)", "1 + tanh is not multiplied by 'x' and by one half"),
        (f"{SILU} y = Mul(g, two)", "'two' that the activation is multiplied by is a constant"),
    ],
)
def test_refusals(nodes: str, reason: str) -> None:
    model, report = run(spelled(nodes))
    assert not [n for n in model.graph.nodes if n.domain]
    assert [reason in f.reason for f in report.findings] == [True]


@pytest.mark.parametrize("u", ["float[B, 1] u", "float[1, 4] u", "float[4] u"])
def test_gate_that_is_broadcast(u: str) -> None:
    model, report = run(spelled(f"{SILU} y = Mul(g, u)", x=f"float[B, 4] x, {u}"))
    assert [n.op for n in model.graph.nodes] == ["Sigmoid", "Mul", "Mul"]
    assert ["the shapes of gate 'x' and 'u' differ" in f.reason for f in report.findings] == [True]


def test_other_tanh_is_not_mentioned() -> None:
    _, report = run(spelled("y = Tanh(x)"))
    assert not report.findings
