"""Attention written out: each spelling against ONNX Runtime, and each reason to leave one alone."""

from pathlib import Path

import numpy as np
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, attention
from tests.passes.canonicalize.spelling import inferred
from tests.support.arrays import activations
from tests.support.rewrite import assert_rewrites, parse
from tests.support.runtime import run_ort

RULES = inferred(attention.RULES)
#: Two matrix products, a softmax and a scale applied elsewhere: 16 half ulps.
TOLERANCE = 16 * 2.0**-24
CONSTANTS = (
    "float scale = {0.25}, float root = {0.5}, float four = {4.0}, float zero = {0.0}, float minus = {-0.25}, "
    "int64[1] two = {2}, int64[5] spread = {1, 1, 2, 1, 1}, int64[4] joined = {2, 4, 7, 8}, "
    "int64[3] flat = {-1, 7, 8}, int64[4] back = {2, 2, 8, 7}"
)
INPUTS = "float[2, 2, 5, 8] q, float[2, 2, 7, 8] k, float[2, 2, 7, 6] v, float[2, 1, 5, 7] mask"
KT = "kt = Transpose<perm=[0, 1, 3, 2]>(k)"
TAIL = "p = Softmax<axis=-1>(s) y = MatMul(p, v)"


def spelled(nodes: str, *, inputs: str = INPUTS, y: str = "float[2, 2, 5, 6] y") -> str:
    return f"agraph ({inputs}) => ({y}) <{CONSTANTS}> {{ {nodes} }}"


def canonical(source: str) -> ir.Model:
    model = parse(source)
    RULES.run(model, Report())
    return model


@pytest.mark.parametrize(
    ("nodes", "scale"),
    [
        (f"{KT} a = MatMul(q, kt) b = Mul(a, scale) s = Add(b, mask) {TAIL}", 0.25),
        (f"{KT} a = MatMul(q, kt) b = Div(a, four) s = Add(mask, b) {TAIL}", 0.25),
        (f"{KT} qs = Mul(q, scale) a = MatMul(qs, kt) s = Add(a, mask) {TAIL}", 0.25),
        (f"{KT} qs = Mul(root, q) ks = Mul(kt, root) a = MatMul(qs, ks) s = Add(a, mask) {TAIL}", 0.25),
        (f"{KT} a = MatMul(q, kt) s = Add(a, mask) {TAIL}", 1.0),
        (f"{KT} s = MatMul(q, kt) {TAIL}", 1.0),
        (f"{KT} a = MatMul(q, kt) s = Mul(a, scale) {TAIL}", 0.25),
        (f"{KT} a = MatMul(q, kt) s = Add(a, mask) r = Softmax<axis=3>(s) i = IsNaN(r) p = Where(i, zero, r) "
         "y = MatMul(p, v)", 1.0),
        (f"{KT} a = MatMul(q, kt) b = Add(a, mask) s = Cast<to=1>(b) r = Softmax(s) p = Cast<to=1>(r) y = MatMul(p, v)",
         1.0),
        ("f = Reshape(k, flat) t = Transpose<perm=[0, 2, 1]>(f) kt = Reshape(t, back) a = MatMul(q, kt) "
         f"s = Add(a, mask) {TAIL}", 1.0),
    ],
)  # fmt: skip
def test_spellings(nodes: str, scale: float, rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(nodes)
    model = canonical(source)
    (node,) = (n for n in model.graph.nodes if n.domain)
    assert len(model.graph.nodes) == 1 and node.attrs["scale"] == scale
    assert [t.name for t in node.inputs[:3]] == ["q", "k", "v"]
    assert (node.inputs[3].name == "mask") == ("mask" in nodes)
    assert_same(source, model, rng, tmp_path)


def assert_same(source: str, model: ir.Model, rng: np.random.Generator, tmp_path: Path) -> None:
    ir.save(parse(source), tmp_path / "before.onnx")
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in model.graph.inputs}
    feeds["v"] = activations(rng, *feeds["v"].shape)
    if "mask" in feeds:
        feeds["mask"][..., 3:] = np.where(rng.random(feeds["mask"][..., 3:].shape) < 0.5, -np.inf, 0)
    (want,), (got,) = (run_ort(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    assert np.isfinite(want).all() and np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


def test_key_that_was_never_split_first(rng: np.random.Generator, tmp_path: Path) -> None:
    """BERT transposes (B, L, H, D) to (B, H, D, L) at once: the canonical key gets a Transpose of its own."""
    source = spelled(
        f"kt = Transpose<perm=[0, 2, 3, 1]>(k) a = MatMul(q, kt) s = Add(a, mask) {TAIL}",
        inputs=INPUTS.replace("float[2, 2, 7, 8] k", "float[2, 7, 2, 8] k"),
    )
    model = canonical(source)
    assert sorted((n.op, n.attrs.get("perm")) for n in model.graph.nodes) == [
        ("Attention", None),
        ("Transpose", [0, 2, 1, 3]),
    ]
    assert_same(source, model, rng, tmp_path)


GROUPED = "float[2, 4, 5, 8] q, float[2, 2, 7, 8] k, float[2, 2, 7, 8] v, float[2, 1, 5, 7] mask"
REPEAT = """u = Unsqueeze(k, two) e = Expand(u, {spread}) kk = Reshape(e, {joined})
    u2 = Unsqueeze(v, two) e2 = Expand(u2, {spread}) vv = Reshape(e2, {joined})
    kt = Transpose<perm=[0, 1, 3, 2]>(kk) a = MatMul(q, kt) s = Add(a, mask) p = Softmax(s)
    y = MatMul(p, vv)"""


@pytest.mark.parametrize("joined", ["{2, 4, 7, 8}", "{2, 4, -1, 8}", "{0, 4, -1, 8}"])
def test_repeated_heads(joined: str, rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(REPEAT.format(spread="spread", joined="joined"), inputs=GROUPED, y="float[2, 4, 5, 8] y")
    source = source.replace("joined = {2, 4, 7, 8}", f"joined = {joined}")
    model = canonical(source)
    assert [n.op for n in model.graph.nodes] == ["Attention"]
    assert [t.name for t in model.graph.nodes[0].inputs[:3]] == ["q", "k", "v"]
    assert_same(source, model, rng, tmp_path)


def test_repeated_whole_groups_are_not_repeated_heads(rng: np.random.Generator, tmp_path: Path) -> None:
    """Unsqueeze on axis 1 repeats head 0, 1, 0, 1 and not 0, 0, 1, 1: it must stay as it is."""
    nodes = REPEAT.format(spread="spread", joined="joined").replace("two)", "one)")
    source = spelled(nodes, inputs=GROUPED, y="float[2, 4, 5, 8] y").replace(
        "int64[1] two = {2}, int64[5] spread = {1, 1, 2, 1, 1}", "int64[1] one = {1}, int64[5] spread = {1, 2, 1, 1, 1}"
    )
    model = canonical(source)
    assert "Expand" in {n.op for n in model.graph.nodes} and "Attention" in {n.op for n in model.graph.nodes}
    assert_same(source, model, rng, tmp_path)


def test_mask_of_another_type(rng: np.random.Generator, tmp_path: Path) -> None:
    source = spelled(
        f"{KT} a = MatMul(q, kt) w = Cast<to=1>(a) s = Add(w, mask) r = Softmax(s) p = Cast<to=10>(r) y = MatMul(p, v)",
        inputs=INPUTS.replace("float[", "float16[").replace("float16[2, 1, 5, 7] mask", "float[2, 1, 5, 7] mask"),
        y="float16[2, 2, 5, 6] y",
    )
    model = canonical(source)
    assert sorted(n.op for n in model.graph.nodes) == ["Attention", "Cast"]


@pytest.mark.parametrize(
    ("nodes", "inputs", "y", "reason"),
    [
        (f"{KT} s = Relu(q) p = Softmax(q) y = MatMul(p, v)", INPUTS.replace("[2, 2, 5, 8] q", "[2, 2, 5, 7] q"), None,
         "the softmax is not of a scaled product"),
        ("kt = Transpose<perm=[0, 2, 1]>(k) s = MatMul(q, kt) " + TAIL,
         "float[2, 5, 8] q, float[2, 7, 8] k, float[2, 7, 6] v", "float[2, 5, 6] y", "the result has rank 3"),
        (f"{KT} s = MatMul(q, kt) p = Softmax<axis=2>(s) y = MatMul(p, v)", INPUTS, None, "the softmax is over axis 2"),
        (f"{KT} a = MatMul(q, kt) s = Mul(a, minus) {TAIL}", INPUTS, None, "the scale is -0.25"),
        (f"s = MatMul(q, k) {TAIL}", INPUTS.replace("[2, 2, 7, 8] k", "[2, 2, 8, 7] k"), None,
         "'k' is not recognized as a transposed key"),
        (f"{KT} a = MatMul(q, kt) s = Add(a, mask) {TAIL}", INPUTS.replace("[2, 1, 5, 7] mask", "[1, 2, 1, 5, 7] mask"),
         "float[1, 2, 2, 5, 6] y", "rank 5"),
        (f"{KT} a = MatMul(q, kt) s = Add(a, mask) {TAIL}", INPUTS.replace("float[2, 1, 5, 7] mask", "float mask"),
         None, "mask 'mask' is a scalar"),
    ],
)  # fmt: skip
def test_refusals(nodes: str, inputs: str, y: str | None, reason: str) -> None:
    source = spelled(nodes, inputs=inputs, y=y or "float[2, 2, 5, 6] y")
    assert_rewrites(source, RULES, None, skipped=[reason])


def test_types_that_differ() -> None:
    nodes = f"{KT} a = MatMul(q, kt) b = Cast<to=10>(a) p = Softmax(b) y = MatMul(p, v)"
    inputs = INPUTS.replace("float[2, 2, 7, 6] v", "float16[2, 2, 7, 6] v")
    source = spelled(nodes, inputs=inputs, y="float16[2, 2, 5, 6] y")
    assert_rewrites(source, RULES, None, skipped=["types of q, k and v differ"])


def test_softmax_of_a_classifier_is_not_mentioned() -> None:
    source = "agraph (float[B, 4] x) => (float[B, 4] y) { y = Softmax(x) }"
    assert_rewrites(source, RULES, None)
