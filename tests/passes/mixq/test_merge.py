"""Merged linears: which are, and that nothing but the number of nodes changes."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir import weights
from graphopt.passes.mixq import SCHEME
from graphopt.passes.mixq.config import MixQConfig, OutlierConfig
from tests.passes.mixq.test_lower import Block, F, K

QKV, GATE_UP = "q_proj + k_proj", "gate_proj + up_proj"
BITS = pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])


def names_of(block: Block) -> list[str]:
    return sorted(n.name for n in block.graph.nodes if "Linear" in n.op)


@BITS
@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "online"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_merged_outputs_are_the_same_to_the_last_bit(bits: str, calibrated: bool, dtype: Any) -> None:
    merged, alone = Block(dtype), Block(dtype)
    statistics = {} if calibrated else {"statistics": None}
    report = merged.lower(config=MixQConfig(bits=bits), merge=True, **statistics)
    alone.lower(config=MixQConfig(bits=bits), **statistics)
    assert names_of(merged) == ["down_proj", GATE_UP, QKV]
    ops = [n.op for n in merged.graph.nodes]
    assert ops.count("Split") == 1
    suffix = ("4" if bits == "w4a4" else "") + ("" if calibrated else "Online")
    assert f"MixQSwiGLU{suffix}" in ops
    assert report.counts("rewritten") == {"mixq": 5}
    for got, want in zip(merged.run(), alone.run(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_operands_are_those_of_the_linears_one_below_the_other() -> None:
    merged, alone = Block(), Block()
    merged.lower(config=MixQConfig(bits="w4a8"), merge=True)
    alone.lower(config=MixQConfig(bits="w4a8"))
    node, parts = merged.ops()[QKV], [alone.ops()[name] for name in ("q_proj", "k_proj")]
    for i, axis in zip(range(3, 8), (0, 1, 0, 0, 0), strict=True):  # wq4, sg, sw, wo, bias
        want = np.concatenate([weights.read(part.inputs[i]) for part in parts], axis)
        np.testing.assert_array_equal(weights.read(node.inputs[i]), want)
    np.testing.assert_array_equal(weights.read(node.inputs[7]), np.concatenate([np.zeros(F), merged.arrays["bk"]]))
    (split,) = node.outputs[0].outputs
    assert [t.name for t in split.outputs] == ["q", "k"]
    assert weights.read(split.inputs[1]).tolist() == [F, F]
    assert node.outputs[0].shape == ["batch", "seq", 2 * F]


def test_report_says_what_is_merged_with_what_also_without_doing_it() -> None:
    reports = [Block().lower(merge=True, dry_run=dry_run) for dry_run in (True, False)]
    for report in reports:
        found = {f.node: f for f in report.findings if f.status == "rewritten"}
        for linear, other in (("q_proj", "k_proj"), ("up_proj", "gate_proj")):
            assert found[linear].reason.endswith(", one product of 2 linears")
            assert found[linear].detail["product_with"] == [other]
        assert "one product" not in found["down_proj"].reason
        assert found["down_proj"].detail["product_with"] == []


def test_gate_comes_first_whatever_the_order_of_the_linears() -> None:
    block = Block()
    nodes = block.graph.nodes
    gate, up = block.ops()["gate_proj"], block.ops()["up_proj"]
    i, j = nodes.index(gate), nodes.index(up)
    nodes[i], nodes[j] = up, gate
    block.lower(merge=True)
    assert GATE_UP in names_of(block)
    alone = Block()
    alone.lower()
    for got, want in zip(block.run(), alone.run(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_activation_of_a_gate_that_others_read_keeps_its_two_inputs() -> None:
    block = Block()
    gate = block.ops()["gate_proj"].outputs[0]
    gate.dtype, gate.shape = np.float32, ["batch", "seq", F]
    block.graph.outputs.append(gate)
    alone = Block()
    alone.lower()
    block.lower(merge=True)
    ops = [n.op for n in block.graph.nodes]
    assert "MixQGatedSilu" in ops
    # The gate is none of its own any more: all four linears of the norm are one.
    assert names_of(block) == ["down_proj", "q_proj + k_proj + gate_proj + up_proj"]
    for got, want in zip(block.run(), alone.run(), strict=False):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("sizes", "axis", "fused"),
    [
        ([F, F], -1, "MixQSwiGLU"),
        (None, -1, "MixQSwiGLU"),
        ([F, F], 2, "MixQSwiGLU"),
        ([F - 8, F + 8], -1, "MixQGatedSilu"),
    ],
)
def test_activation_that_an_exporter_feeds_from_one_linear_reads_its_halves(
    sizes: list[int] | None, axis: int, fused: str
) -> None:
    """Without sizes a Split is even (up to opset 17)."""
    rng, block = np.random.default_rng(3), Block()
    both = block.constant("both", rng.standard_normal((K, 2 * F)) / 8)
    gate, up = block.ops()["gate_proj"], block.ops()["up_proj"]
    halves = [gate.outputs[0], up.outputs[0]]
    for node in (gate, up):
        node.inputs.clear()
        node.outputs.clear()
    whole = block.add("Linear", "gate_up_proj", [block.ops()["norm"].outputs[0], both], "whole", trans_w=0)
    whole.shape = ["batch", "seq", 2 * F]
    parts = [] if sizes is None else [gs.Constant("sizes", np.array(sizes, np.int64))]
    block.graph.nodes.append(gs.Node("Split", "halves", {"axis": axis}, [whole, *parts], halves))
    block.graph.cleanup().toposort()
    report = Report()
    config = MixQConfig(outliers=OutlierConfig(select="none"))
    SCHEME.lower(block.model, {"gate_up_proj": config, "down_proj": config}, None, report, dry_run=False)
    (made,) = [n for n in block.graph.nodes if n.op == fused]
    glu = fused == "MixQSwiGLU"
    assert any(n.op == "Split" for n in block.graph.nodes) != glu
    if glu:
        assert made.inputs[0].inputs[0].name == "gate_up_proj"


@pytest.mark.parametrize(
    "other",
    [MixQConfig(merge=False), MixQConfig(bits="w4a8"), MixQConfig(bits="w4a8", group=128)],
    ids=["told not to", "other bits", "other groups"],
)
def test_only_linears_of_one_kind_are_merged(other: MixQConfig) -> None:
    block, report = Block(), Report()
    first = MixQConfig(bits="w4a8", group=64) if other.group == 128 else MixQConfig()
    first = first.model_copy(update={"merge": True})
    other = other if other.merge is False else other.model_copy(update={"merge": True})
    configs = {"q_proj": first, "k_proj": other, "gate_proj": first, "up_proj": other, "down_proj": first}
    SCHEME.lower(block.model, configs, block.statistics(), report, dry_run=False)
    assert "MixQGatedSilu" in [n.op for n in block.graph.nodes]
    assert "k_proj" not in [part for name in names_of(block) if "q_proj" in name for part in name.split(" + ")]
    assert len(block.run()) == 3


def test_by_default_only_a_gate_and_its_up_projection_are_merged() -> None:
    block = Block()
    block.lower(merge=MixQConfig().merge)
    assert names_of(block) == ["down_proj", GATE_UP, "k_proj", "q_proj"]
    assert not any(n.op == "Split" for n in block.graph.nodes)


def test_a_computed_bias_stays_with_its_linear() -> None:
    block = Block()
    bias = block.ops()["k_proj"].inputs[2]
    computed = gs.Variable("computed", np.float32, [F])
    block.graph.nodes.append(gs.Node("Neg", "negate", {}, [bias], [computed]))
    block.ops()["k_proj"].inputs[2] = computed
    block.lower(merge=True)
    assert block.ops()["k_proj"].inputs[6] is computed
    assert block.ops()["k_proj"].domain == DOMAIN
