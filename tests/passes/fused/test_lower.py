"""Norms and activations that plugin ops read become one op; others stay, and the model says the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import compile, ir
from graphopt.core.op import DOMAIN, attach_bodies
from graphopt.core.producers import PRODUCERS
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.passes import CACHES, OPS, SCHEMES, fused
from graphopt.passes.canonicalize import ops
from graphopt.passes.fused.ops import FUSED
from graphopt.passes.vq.hadamard_ops import HADAMARD
from tests.passes.kvcache.decoders import EXPORTERS, built, optimized
from tests.support.arrays import activations
from tests.support.runtime import run_ort

K = 64
CANONICAL = {spec.name: spec for spec in (ops.RMS_NORM, ops.LAYER_NORM, *ops.GATED.values(), *ops.GELUS.values())}
#: Schemes whose linears read activations of T.
OF_FLOATS = ("mant-w4a16", "nf4", "int4", "vq-gptvq2", "vq-aqlm2")


def tensor(name: str, size: int = K) -> gs.Variable:
    return gs.Variable(name, np.float32, ["batch", "tokens", size])


def block(name: str, seed: int, *, plugin: bool = True) -> ir.Model:
    """A producer, and a plugin op or a standard one that reads it."""
    rng = np.random.default_rng(seed)
    spec = CANONICAL[name.removeprefix("Add")]
    inputs, nodes = [tensor("x")], []
    operands: list[gs.Tensor] = [inputs[0]]
    if name.startswith("Add"):
        inputs.append(tensor("r"))
        operands = [tensor("s")]
        nodes.append(gs.Node("Add", "add", inputs=list(inputs), outputs=list(operands)))
    if name.startswith("Gated"):
        inputs.append(tensor("u"))
        operands.append(inputs[1])
    vectors = [p.name for p in spec.inputs if p.name in ("gamma", "beta")]
    operands += [gs.Constant(v, rng.uniform(0.5, 1.5, K).astype(np.float32)) for v in vectors]
    h = tensor("h")
    nodes.append(spec.node("producer", operands, [h]))
    outputs = [tensor("y")]
    signs = gs.Constant("signs", (2 * rng.integers(0, 2, K) - 1).astype(np.int8))
    if plugin:
        nodes.append(HADAMARD.node("reader", [h, signs], outputs, block=K))
    else:
        nodes.append(gs.Node("Neg", "reader", inputs=[h], outputs=outputs))
    graph = gs.Graph(nodes, inputs, outputs, opset=18, import_domains=[onnx.helper.make_opsetid("", 18)])
    return ir.Model(graph)


def also_read(model: ir.Model, name: str) -> None:
    read = model.graph.tensors()[name]
    model.graph.outputs.append(tensor(f"{name}_read"))
    model.graph.nodes.append(gs.Node("Neg", f"neg_{name}", inputs=[read], outputs=[model.graph.outputs[-1]]))


def lowered(model: ir.Model) -> Report:
    report = Report()
    fused.lower(model, report)
    attach_bodies(model, OPS)
    return report


def outputs_of(model: ir.Model, path: Path) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    given = {t.name: activations(rng, 2, 5, K) for t in model.graph.inputs}
    return run_ort(ir.save(model, path)[0], given)


def ours(model: ir.Model) -> Counter[str]:
    return Counter(n.op for n in model.graph.nodes if n.domain == DOMAIN)


def test_every_producer_but_merged_ones_is_an_op() -> None:
    assert {name for name in PRODUCERS if name not in FUSED} == {"SwiGLU", "GeGLU", "GeGLUTanh"}


@pytest.mark.parametrize("name", FUSED)
def test_what_a_plugin_reads_is_one_op(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    seed = int(rng.integers(2**31))
    apart, model = block(name, seed), block(name, seed)
    for m in (apart, model):
        also_read(m, "h")
    attach_bodies(apart, OPS)
    (finding,) = lowered(model).findings
    (node,) = [n for n in model.graph.nodes if n.op in {spec.name for spec in FUSED.values()}]
    assert node.op == f"Fused{name}"
    assert (finding.status, finding.node) == ("rewritten", "producer")
    assert {n.op for n in model.graph.nodes} == {node.op, "VQHadamard", "Neg"}
    assert node.attrs.get("emit_sum", 0) == 0
    got, want = outputs_of(model, tmp_path / "a.onnx"), outputs_of(apart, tmp_path / "b.onnx")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("name", ["AddRMSNorm", "AddLayerNorm"])
def test_a_sum_that_is_read_is_an_output(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    seed = int(rng.integers(2**31))
    apart, model = block(name, seed), block(name, seed)
    for m in (apart, model):
        also_read(m, "s")
    attach_bodies(apart, OPS)
    lowered(model)
    assert ours(model) == {f"Fused{name}": 1, "VQHadamard": 1}
    assert next(n for n in model.graph.nodes if n.op == f"Fused{name}").attrs["emit_sum"] == 1
    got, want = outputs_of(model, tmp_path / "a.onnx"), outputs_of(apart, tmp_path / "b.onnx")
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("name", ["AddRMSNorm", "LayerNorm", "GatedSilu", "Gelu"])
def test_what_no_plugin_reads_stays(name: str, rng: np.random.Generator) -> None:
    model = block(name, int(rng.integers(2**31)), plugin=False)
    before = Counter(n.op for n in model.graph.nodes)
    assert not lowered(model).findings
    assert Counter(n.op for n in model.graph.nodes) == before


def test_an_addition_of_other_shapes_stays(rng: np.random.Generator) -> None:
    model = block("AddRMSNorm", int(rng.integers(2**31)))
    model.graph.inputs[1].shape = [1, 1, K]
    lowered(model)
    assert Counter(n.op for n in model.graph.nodes) == {"Add": 1, "FusedRMSNorm": 1, "VQHadamard": 1}


def test_two_norms_of_one_sum(rng: np.random.Generator) -> None:
    """As in blocks whose attention and feed-forward are parallel: the first one takes the sum."""
    model = block("AddRMSNorm", int(rng.integers(2**31)))
    gamma = gs.Constant("gamma_2", rng.uniform(0.5, 1.5, K).astype(np.float32))
    h = tensor("h_2")
    y, signs = tensor("y_2"), gs.Constant("signs_2", np.ones(K, np.int8))
    model.graph.nodes.append(ops.RMS_NORM.node("producer_2", [model.graph.tensors()["s"], gamma], [h]))
    model.graph.nodes.append(HADAMARD.node("reader_2", [h, signs], [y], block=K))
    model.graph.outputs.append(y)
    lowered(model)
    assert ours(model) == {"FusedAddRMSNorm": 1, "FusedRMSNorm": 1, "VQHadamard": 2}


@pytest.mark.parametrize("scheme", OF_FLOATS)
def test_decoder_of_a_scheme_on_floats(scheme: str) -> None:
    """Two layers; the last norm is read by the head, which has a scheme too."""
    model = built("float16")
    optimized(model, scheme=scheme, capacity=64)
    assert {op: n for op, n in ours(model).items() if op.startswith("Fused")} == {
        "FusedRMSNorm": 1,
        "FusedAddRMSNorm": 4,
        "FusedGatedSilu": 2,
    }


LLAMA = {"FusedRMSNorm": 1, "FusedAddRMSNorm": 4, "FusedGatedSilu": 2}


@pytest.mark.parametrize(
    ("exporter", "scheme", "wanted"),
    [
        ("llama_torchscript17_kv", "int4", {"FusedRMSNorm": 1, "FusedAddRMSNorm": 2, "FusedGatedSilu": 1}),
        ("bert_torchscript17", "int4", {"FusedLayerNorm": 1, "FusedAddLayerNorm": 3, "FusedGelu": 2}),
        ("llama_dynamo18_kv_fp16", "nf4", LLAMA),
        ("llama_dynamo18_bf16", "mant-w4a16", LLAMA),
        ("qwen3_dynamo18_kv", "mant-w4a16", LLAMA),  # its norms of heads are read by no plugin op
        ("llama_genai_fp16", "mant-w4a16", LLAMA),  # opset 22
        ("llama_dynamo23_kv", "mant-w4a16", LLAMA),
    ],
)
def test_models_of_exporters(exporter: str, scheme: str, wanted: dict[str, int]) -> None:
    model = ir.load(EXPORTERS / f"{exporter}.onnx")
    compile.optimize(model, Recipe.preset(scheme, SCHEMES))
    assert {op: n for op, n in ours(model).items() if op.startswith("Fused")} == wanted


def test_norms_of_heads_before_attention_over_a_cache() -> None:
    model = ir.load(EXPORTERS / "qwen3_dynamo18_kv.onnx")
    recipe = Recipe.preset("none", SCHEMES).with_cache("static", {"capacity": 64}, CACHES)
    compile.optimize(model, recipe)
    assert ours(model) == {"FusedRMSNorm": 4, "CachedAttention": 2}


def test_a_scheme_that_fuses_itself_leaves_nothing() -> None:
    model = built()
    optimized(model, None, scheme="mixq-w8a8")
    assert not [op for op in ours(model) if op.startswith("Fused")]
    assert "MixQAddRMSNormOnline" in ours(model)
