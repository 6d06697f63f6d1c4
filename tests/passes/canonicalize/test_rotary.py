"""Rotary embedding: each spelling against ONNX Runtime, and each reason to leave one alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, rotary
from tests.passes.canonicalize.spelling import MICROSOFT, constant, header, inferred
from tests.support.arrays import activations
from tests.support.rewrite import assert_rewrites, parse
from tests.support.runtime import run_ort, run_reference

RULES = inferred(rotary.RULES)
#: Two products and a sum per element, in another order at most: 4 half ulps.
TOLERANCE = 4 * 2.0**-24
BOUNDS = (
    "int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] one = {1}, int64[1] three = {3}, "
    "int64[1] last = {-1}, int64[1] far = {9223372036854775807}, int64[1] minus = {-2}"
)
TURNED = """low = Slice(x, zero, two, three) high = Slice(x, two, far, three) n = Neg(high)
    t = Concat<axis=-1>(n, low)"""
SUM = "a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)"
TABLES = "float[B, 1, S, 4] cos, float[B, 1, S, 4] sin"


def spelled(nodes: str, *, x: str = "float[B, 2, S, 4] x", tables: str = TABLES) -> str:
    return f"agraph ({x}, {tables}) => (float[B, 2, S, 4] y) <{BOUNDS}> {{ {nodes} }}"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{TURNED} {SUM}",
        f"{TURNED} a = Mul(cos, x) b = Mul(sin, t) y = Add(b, a)",
        f"{TURNED.replace('axis=-1', 'axis=3')} {SUM}",
        TURNED.replace("three", "last").replace("low = Slice(x, zero, two", "low = Slice(x, zero, minus") + SUM,
        TURNED.replace("three)", "three, one)").replace("far", "four") + SUM,
    ],
)
def test_halves(nodes: str, rng: np.random.Generator, tmp_path: Path) -> None:
    model = parse(spelled(nodes))
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    assert [(n.op, [t.name for t in n.inputs]) for n in model.graph.nodes] == [("Rotary", ["x", "cos", "sin"])]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    angles = rng.uniform(-3, 3, (2, 1, 3, 4))
    feeds = {"x": activations(rng, 2, 2, 3, 4)} | {
        n: f(angles).astype(np.float32) for n, f in (("cos", np.cos), ("sin", np.sin))
    }
    (want,), (got,) = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (spelled(f"{TURNED} {SUM}", x="float[B, 2, S, D] x"), "the head size (last dimension of 'x') is not known"),
        (spelled(TURNED.replace("zero, two", "zero, one").replace("two, far", "one, far") + SUM),
         "'t' is not concat(-x[D/2:], x[:D/2]) of all 4 channels"),
        (spelled(TURNED.replace("(n, low)", "(low, n)") + SUM), "is not concat(-x[D/2:], x[:D/2])"),
        (spelled(f"{TURNED.replace('three', 'last')} {SUM}", x="float[2, S, 4] x",
                 tables="float[B, 1, S, 4] cos, float[1, S, 4] sin"), "'x' has rank 3, not (batch, heads"),
    ],
)  # fmt: skip
def test_halves_refusals(source: str, reason: str) -> None:
    assert_rewrites(source, RULES, None, skipped=[reason])


def test_other_sums_of_products_are_not_mentioned() -> None:
    nodes = "t = Concat<axis=-1>(x, x) h = Slice(t, zero, four, three) a = Mul(x, cos) b = Mul(h, sin) y = Add(a, b)"
    assert_rewrites(spelled(nodes), RULES, None)


def embedding(node: str, *, opset: int = 23, x: str, tables: str, y: str) -> str:
    top = MICROSOFT if "microsoft" in node else header(opset)
    return f"{top}agraph ({x}) => ({y}) <{tables}> {{ {node} }}"


CACHE = f"{constant('cos', 9, 2)}, {constant('sin', 9, 2, seed=1)}"


@pytest.mark.parametrize(
    "source",
    [
        embedding("y = RotaryEmbedding(x, c, s)", x="float[1, 2, S, 4] x, float[1, S, 2] c, float[1, S, 2] s",
                  tables="", y="float[1, 2, S, 4] y"),
        embedding("y = RotaryEmbedding(x, cos, sin, p)", x="float[B, 2, S, 4] x, int64[B, S] p", tables=CACHE,
                  y="float[B, 2, S, 4] y"),
        embedding("y = RotaryEmbedding<num_heads=2>(x, cos, sin, p)", x="float[B, S, 8] x, int64[B, S] p", tables=CACHE,
                  y="float[B, S, 8] y"),
        embedding("y = com.microsoft.RotaryEmbedding(x, p, cos, sin)", x="float[B, S, 8] x, int64[B, S] p",
                  tables=CACHE, y="float[B, S, 8] y"),
        embedding("y = com.microsoft.RotaryEmbedding(x, p, cos, sin)", x="float[B, 2, S, 4] x, int64[B, S] p",
                  tables=CACHE, y="float[B, 2, S, 4] y"),
    ],
)  # fmt: skip
def test_embedding(source: str, rng: np.random.Generator, tmp_path: Path) -> None:
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes if n.domain] == ["Rotary"]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    # ONNX Runtime's RotaryEmbedding of opset 23 takes one batch only without positions.
    sizes = {"B": 2, "S": 3}
    feeds = {t.name: activations(rng, *(sizes.get(d, d) for d in t.shape)) for t in model.graph.inputs}
    if "p" in feeds:
        feeds["p"] = np.array([[0, 1, 2], [6, 7, 8]])
    proto = onnx.load(tmp_path / "before.onnx")
    run = run_ort if "microsoft" in source else run_reference
    (want,), (got,) = run(proto, feeds), run_ort(tmp_path / "after.onnx", feeds)
    assert got.shape == want.shape and np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


FOUR = "float[B, 2, S, 4] x, int64[B, S] p"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (embedding("y = RotaryEmbedding<interleaved=1>(x, cos, sin, p)", x=FOUR, tables=CACHE, y="float[B, 2, S, 4] y"),
         "interleaved is set"),
        (embedding("y = RotaryEmbedding<rotary_embedding_dim=2>(x, cos, sin, p)", x=FOUR, y="float[B, 2, S, 4] y",
                   tables=f"{constant('cos', 9, 1)}, {constant('sin', 9, 1)}"),
         "2 of 4 channels of a head are rotated"),
        (embedding("y = RotaryEmbedding(x, c, s)", x="float[B, 2, S, D] x, float[B, S, 2] c, float[B, S, 2] s",
                   tables="", y="float[B, 2, S, D] y"), "shapes of 'x' and 'c' are not known"),
        (embedding("y = com.microsoft.RotaryEmbedding<scale=2.0>(x, p, cos, sin)", x=FOUR, tables=CACHE,
                   y="float[B, 2, S, 4] y"), "scale is not 1"),
        (embedding("y = com.microsoft.RotaryEmbedding(x, p, cos, sin)", x="float[B, 2, S, 4] x, int64[1] p",
                   tables=CACHE, y="float[B, 2, S, 4] y"), "position_ids are not a (batch, sequence) tensor"),
    ],
)  # fmt: skip
def test_embedding_refusals(source: str, reason: str) -> None:
    assert_rewrites(source, RULES, None, skipped=[reason])
