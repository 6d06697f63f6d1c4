"""Attention that is one node: each form against ONNX Runtime, and each reason to leave one alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, attention_ops
from tests.passes.canonicalize.spelling import MICROSOFT, constant, header, inferred
from tests.support.rewrite import assert_rewrites, parse
from tests.support.runtime import run_ort

RULES = inferred(attention_ops.RULES)
#: Two matrix products, a softmax and a scale applied elsewhere: 16 half ulps.
TOLERANCE = 16 * 2.0**-24
BATCH, STEP, PAST = 2, 3, 4


def feeds(model: ir.Model, rng: np.random.Generator, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for t in model.graph.inputs:
        shape = [sizes.get(d, d) for d in t.shape]
        if t.dtype == np.bool_:
            made[t.name] = rng.random(shape) < 0.6
            made[t.name][..., 0] = True
        elif t.name == "seqlens":
            made[t.name] = np.full(shape, sizes["P"] + sizes["S"] - 1, np.int32)
        elif t.name == "total":
            made[t.name] = np.array(sizes["P"] + sizes["S"], np.int32)
        else:
            made[t.name] = rng.standard_normal(shape).astype(np.float32)
            made[t.name][..., 2] *= 6
    return made


def assert_same(source: str, rng: np.random.Generator, tmp_path: Path, **sizes: int) -> ir.Model:
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    given = feeds(model, rng, {"B": BATCH, "S": STEP, "L": 7, "P": PAST, "T": PAST + STEP} | sizes)
    RULES.run(model, Report())
    assert [n.op for n in model.graph.nodes if n.domain and n.op != "Rotary"] == ["Attention"]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    before, after = (run_ort(tmp_path / f"{name}.onnx", given) for name in ("before", "after"))
    for want, got in zip(before, after, strict=True):
        assert got.shape == want.shape and np.isfinite(want).all()
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)
    return model


HEADS = "float[B, 4, S, 8] q, float[B, 2, L, 8] k, float[B, 2, L, 6] v"
FLAT = "float[B, S, 32] q, float[B, L, 16] k, float[B, L, 12] v"
CACHE = "float[B, 2, P, 8] pk, float[B, 2, P, 6] pv"
OUT = "float[B, 4, S, 6] y"
#: New keys and values behind a cache: L is S.
NEW = HEADS.replace("L", "S")


def standard(node: str, inputs: str, y: str = OUT, opset: int = 23) -> str:
    return f"{header(opset)}agraph ({inputs}) => ({y}) {{ {node} }}"


@pytest.mark.parametrize(
    "source",
    [
        standard("y = Attention(q, k, v)", HEADS),
        standard("y = Attention<scale=0.1>(q, k, v, m)", f"{HEADS}, float[S, L] m"),
        standard("y = Attention(q, k, v, m)", f"{HEADS}, float[B, 4, S, L] m"),
        standard("y = Attention(q, k, v, m)", f"{HEADS}, bool[B, 1, S, L] m"),
        standard("y = Attention<is_causal=1>(q, k, v)", HEADS.replace("L", "S")),
        standard("y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)", FLAT, "float[B, S, 24] y"),
        standard("y = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(q, k, v, m)",
                 f"{FLAT.replace('L', 'S')}, float[S, S] m", "float[B, S, 24] y"),
        standard("y, tk, tv = Attention(q, k, v, , pk, pv)", f"{NEW}, {CACHE}",
                 f"{OUT}, float[B, 2, T, 8] tk, float[B, 2, T, 6] tv"),
        standard("y, tk, tv = Attention<is_causal=1>(q, k, v, , pk, pv)", f"{NEW}, {CACHE}",
                 f"{OUT}, float[B, 2, T, 8] tk, float[B, 2, T, 6] tv"),
    ],
)  # fmt: skip
def test_standard(source: str, rng: np.random.Generator, tmp_path: Path) -> None:
    assert_same(source, rng, tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (standard("y = Attention<softcap=30.0>(q, k, v)", HEADS), "softcap is 30"),
        (standard("y, , , s = Attention(q, k, v)", HEADS, f"{OUT}, float[B, 4, S, L] s"), "'s' of scores is read"),
        (
            standard("y = Attention(q, k, v)", HEADS.replace("S, 8] q", "S, D] q")),
            "shapes of 'q' and 'k' are not known",
        ),
        (standard("y = Attention(q, k, v, m)", f"{HEADS}, float m"), "type or shape of mask 'm' is not known"),
        (standard("y = Attention(q, k, v, , , , n)", f"{HEADS}, int64[B] n", opset=24), "'n' is given as input 6"),
        (standard("y = Attention<left_window_size=1>(q, k, v)", HEADS, opset=25), "left_window_size is 1"),
        (standard("y = Attention<right_window_size=0>(q, k, v)", HEADS, opset=25), "right_window_size is 0"),
    ],
)
def test_standard_refusals(source: str, reason: str) -> None:
    assert_rewrites(source, RULES, None, skipped=[reason])


def test_flat_inputs_need_head_counts() -> None:
    source = standard("y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)", FLAT, "float[B, S, 24] y")
    model, report = parse(source), Report()
    del model.graph.nodes[0].attrs["kv_num_heads"]
    # Shape inference would refuse the node outright; the rule must not rely on it.
    from graphopt.core.rule import apply_rules

    apply_rules(model, attention_ops.RULES, "test", report)
    assert ["kv_num_heads are not given" in f.reason for f in report.findings] == [True]


#: ONNX Runtime wants head sizes that are multiples of 16 here.
PACKED = "float[B, S, 128] q"
SEPARATE = "float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v"
KV = "float[B, 2, P, 16] pk, float[B, 2, P, 16] pv, int32[B] seqlens, int32 total"
TABLES = f"{constant('cos', 16, 8)}, {constant('sin', 16, 8, seed=1)}"
PRESENT = "float[B, S, 64] y, float[B, 2, T, 16] tk, float[B, 2, T, 16] tv"


def grouped(inputs: str, given: str, *, more: str = "", attrs: str = "", constants: str = TABLES) -> str:
    node = f"y, tk, tv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2{attrs}>({given})"
    return f"{MICROSOFT}agraph ({inputs}, {KV}{more}) => ({PRESENT}) <{constants}> {{ {node} }}"


ROTARY = ", do_rotary=1"
PACKED_GIVEN = "q, , , pk, pv, seqlens, total"
SEPARATE_GIVEN = "q, k, v, pk, pv, seqlens, total"


@pytest.mark.parametrize(
    "sizes", [{"P": 0, "T": STEP}, {"S": 1, "T": PAST + 1}, {"B": 1}], ids=["prompt", "step", "chunk"]
)
@pytest.mark.parametrize(
    "source",
    [
        grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY),
        grouped(SEPARATE, f"{SEPARATE_GIVEN}, cos, sin", attrs=f"{ROTARY}, scale=0.2"),
        grouped(SEPARATE, SEPARATE_GIVEN, attrs=", smooth_softmax=-1, causal=1, k_quant_type=\"NONE\""),
        grouped(SEPARATE, SEPARATE_GIVEN, attrs=", local_window_size=2"),
        grouped(PACKED, f"{PACKED_GIVEN}, cos, sin, , bias", attrs=ROTARY, more=", float[B, 4, S, T] bias"),
    ],
    ids=["packed", "separate", "plain", "window", "bias"],
)  # fmt: skip
def test_grouped(source: str, sizes: dict[str, int], rng: np.random.Generator, tmp_path: Path) -> None:
    model = assert_same(source, rng, tmp_path, **sizes)
    assert sum(n.op == "Rotary" for n in model.graph.nodes) == (2 if "do_rotary" in source else 0)


def test_padded_prompts(rng: np.random.Generator, tmp_path: Path) -> None:
    """Prompts of different lengths, padded on the right: the outputs of the real tokens agree."""
    source = grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY)
    model = parse(source)
    ir.save(model, tmp_path / "before.onnx")
    given = feeds(model, rng, {"B": 2, "S": 5, "P": 0, "T": 5})
    given["seqlens"] = np.array([4, 2], np.int32)
    RULES.run(model, Report())
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    before, after = (run_ort(tmp_path / f"{name}.onnx", given)[0] for name in ("before", "after"))
    for b, real in enumerate((5, 3)):
        assert np.linalg.norm((after - before)[b, :real]) <= TOLERANCE * np.linalg.norm(before[b, :real])


def test_report_says_what_the_cache_assumes() -> None:
    model, report = parse(grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY)), Report()
    RULES.run(model, report)
    assert ["one length when decoding" in f.reason for f in report.findings] == [True]


def test_head_size_of_the_cache_is_written_down() -> None:
    model = parse(grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY).replace("P, 16]", "P, D]"))
    RULES.run(model, Report())
    assert [t.shape[-1] for t in model.graph.inputs if t.name in ("pk", "pv")] == [16, 16]


def test_lengths_come_from_inputs_that_layers_share() -> None:
    """Dimensions with a name that an input has are read from that input, whatever tensor the node looks at."""
    model = parse(grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY))
    RULES.run(model, Report())
    read = {n.inputs[0].name for n in model.graph.nodes if n.op == "Shape"}
    assert read <= {t.name for t in model.graph.inputs}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (grouped(PACKED, PACKED_GIVEN, attrs=", softcap=50.0"), "softcap is 50"),
        (grouped(PACKED, PACKED_GIVEN, attrs=", smooth_softmax=1"), "smooth_softmax is 1"),
        (grouped(PACKED, PACKED_GIVEN, attrs=", causal=0"), "causal is 0"),
        (grouped(PACKED, PACKED_GIVEN, attrs=", sliding_window_cache=1"), "sliding_window_cache is 1"),
        (grouped(PACKED, PACKED_GIVEN, attrs=", novelty=1"), "attribute novelty is not known"),
        (grouped(PACKED, f"{PACKED_GIVEN}, , , , , , , , g", more=", float[16] g"), "'g' is given as input 14"),
        (grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=f"{ROTARY}, rotary_interleaved=1"),
         "rotary_interleaved is 1"),
        (grouped(PACKED, f"{PACKED_GIVEN}, , , , , sink", more=", float[4] sink"), "sink 'sink' is given"),
        (grouped(PACKED, "q, , , , , seqlens, total"), "past_key and past_value are not given"),
        (grouped("float[B, S, N] q", PACKED_GIVEN), "type or last dimension of 'q' is not known"),
        (grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY,
                 constants=f"{constant('cos', 16, 4)}, {constant('sin', 16, 4)}"), "does not turn all 16 channels"),
        (grouped(PACKED, f"{PACKED_GIVEN}, cos, sin, p", attrs=ROTARY, more=", int64[B, S] p"),
         "positions 'p' are given"),
    ],
)  # fmt: skip
def test_grouped_refusals(source: str, reason: str) -> None:
    assert_rewrites(source, RULES, None, skipped=[reason])


MHA = "float[B, S, 32] q, float[B, L, 32] k, float[B, L, 24] v"


def multi(given: str, *, inputs: str = MHA, y: str = "float[B, S, 24] y", attrs: str = "", outputs: str = "y") -> str:
    node = f"{outputs} = com.microsoft.MultiHeadAttention<num_heads=4{attrs}>({given})"
    return f"{MICROSOFT}agraph ({inputs}) => ({y}) <{constant('bias', 88)}> {{ {node} }}"


@pytest.mark.parametrize(
    "source",
    [
        multi("q, k, v"),
        multi("q, k, v, , , m", inputs=f"{MHA}, float[B, 4, S, L] m", attrs=", scale=0.3"),
        multi("q, k, v, , , , pk, pv", outputs="y, tk, tv",
              inputs=f"{MHA.replace('L', 'S').replace('24', '32')}, float[B, 4, P, 8] pk, float[B, 4, P, 8] pv",
              y="float[B, S, 32] y, float[B, 4, T, 8] tk, float[B, 4, T, 8] tv"),
    ],
)  # fmt: skip
def test_multi_head(source: str, rng: np.random.Generator, tmp_path: Path) -> None:
    assert_same(source, rng, tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (multi("q, k, v, bias"), "bias 'bias' is given"),
        (multi("q, k, v, , pad", inputs=f"{MHA}, int32[B, L] pad"), "padding 'pad' is given"),
        (multi("q, k, v, , , , , , n", inputs=f"{MHA}, int32[1] n"), "'n' is given as input 8"),
        (multi("q, k, v", attrs=", unidirectional=1"), "unidirectional is 1"),
        (multi("q, k", inputs="float[B, S, 32] q, float[B, L, 4, 2, 8] k", y="float[B, S, 32] y"),
         "q, k and v are not three"),
        (multi("q, k, v", inputs=MHA.replace("S, 32] q", "S, N] q")), "last dimensions of q, k and v are not known"),
        (multi("q, k, v", outputs="y, , , s", y="float[B, S, 24] y, float[B, 4, S, L] s"), "'s' of scores is read"),
    ],
)  # fmt: skip
def test_multi_head_refusals(source: str, reason: str) -> None:
    assert_rewrites(source, RULES, None, skipped=[reason])


def test_joined_heads_are_not_split_again(rng: np.random.Generator, tmp_path: Path) -> None:
    """repeat_kv of the genai builder: heads are repeated, joined to (B, L, H·D), and MultiHeadAttention splits them."""
    repeat = """u{n} = Unsqueeze({n}, two) e{n} = Expand(u{n}, spread) r{n} = Reshape(e{n}, four)
        t{n} = Transpose<perm=[0, 2, 1, 3]>(r{n}) j{n} = Reshape(t{n}, flat)"""
    constants = ("int64[1] two = {2}, int64[5] spread = {1, 1, 2, 1, 1}, int64[4] four = {2, 4, 7, 8}, "
                 "int64[3] flat = {0, 0, 32}")  # fmt: skip
    source = f"""{MICROSOFT}agraph (float[2, S, 32] q, float[2, 2, 7, 8] k, float[2, 2, 7, 8] v) => (float[2, S, 32] y)
        <{constants}> {{ {repeat.format(n="k")} {repeat.format(n="v")}
        y = com.microsoft.MultiHeadAttention<num_heads=4>(q, jk, jv) }}"""
    model = assert_same(source, rng, tmp_path)
    (node,) = (n for n in model.graph.nodes if n.op == "Attention")
    assert [t.name for t in node.inputs[1:3]] == ["k", "v"]
    assert "Expand" not in {n.op for n in model.graph.nodes}


def test_models_stay_valid(tmp_path: Path, to_model: Any) -> None:
    model = parse(grouped(PACKED, f"{PACKED_GIVEN}, cos, sin", attrs=ROTARY))
    RULES.run(model, Report())
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    onnx.checker.check_model(str(tmp_path / "after.onnx"))
