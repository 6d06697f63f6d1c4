"""What each exporter writes becomes the same canonical form, and computes what it computed before."""

import functools
import itertools
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import compile, ir
from graphopt.core.op import DOMAIN, attach_bodies
from graphopt.core.report import Report
from graphopt.models import assets
from graphopt.passes import OPS, legalize
from tests.support.runtime import run_ort, run_reference

FIXTURES = Path(__file__).parents[2] / "fixtures" / "exporters"
VOCAB, HIDDEN, KV_HEADS, HEAD = 72, 48, 2, 16

#: Largest normalized difference ||a - b|| / ||b|| of an output. A rewrite moves roundings (the scale of attention goes
#: to q, a product with the gain is rounded once instead of twice, the 16-bit softmax is float32); some 20 roundings of
#: half an ulp lie between tokens and logits, and the planted outliers amplify each a little: 32 and 16 half ulps. A
#: wrong table, mask or head order is off by a half and more.
TOLERANCE = {"float32": 32 * 2.0**-24, "float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8}

DECODER = {"Linear": 15, "RMSNorm": 5, "Rotary": 4, "Attention": 2, "GatedSilu": 2}
PACKED = DECODER | {"Linear": 11}
GATES = {"Linear": 2, "LinearBias": 4, "GatedGelu": 1, "GatedGeluTanh": 1, "Gelu": 1, "GeluTanh": 1}
#: (batch, new tokens, past tokens).
PROMPT, STEP, CHUNK = (2, 5, 0), (2, 1, 4), (1, 5, 3)


@dataclass(frozen=True)
class Case:
    """What a fixture comes to, and the sizes at which the original runs."""

    counts: dict[str, int]
    sizes: tuple[tuple[int, int, int], ...] = (PROMPT, (1, 7, 0))
    dtype: str = "float32"


CASES = {
    "bert_torchscript17": Case({"LinearBias": 12, "LayerNorm": 5, "Attention": 2, "Gelu": 2}),
    "bert_ortopt17": Case({"LinearBias": 12, "LayerNorm": 5, "Attention": 2, "Gelu": 2}),
    "gates_dynamo18": Case(GATES),
    "gates_dynamo20": Case(GATES),
    "gates_torchscript17": Case(GATES),
    "llama_dynamo18": Case(DECODER),
    "llama_dynamo18_bf16": Case(DECODER, dtype="bfloat16"),
    "llama_dynamo18_eager": Case(DECODER),
    "llama_dynamo18_fp16": Case(DECODER, dtype="float16"),
    "llama_dynamo18_kv": Case(DECODER, (PROMPT, STEP, CHUNK, (2, 3, 4))),
    "llama_dynamo18_kv_fp16": Case(DECODER, (PROMPT, STEP, CHUNK), "float16"),
    "llama_dynamo18_tied": Case(DECODER),
    # ONNX Runtime's RotaryEmbedding of opset 23 rejects batches.
    "llama_dynamo23": Case(DECODER, ((1, 5, 0),)),
    "llama_dynamo23_kv": Case(DECODER, ((1, 5, 0), (1, 1, 4), CHUNK)),
    # GroupQueryAttention takes several new tokens behind a cache for one sequence only.
    "llama_genai_fp16": Case(PACKED, (PROMPT, STEP, CHUNK), "float16"),
    "llama_genai_fp32": Case(PACKED, (PROMPT, STEP, CHUNK)),
    "llama_genai_int4": Case(PACKED, (PROMPT, STEP, CHUNK)),
    "llama_genai_int4_tied": Case(PACKED, (PROMPT, STEP, CHUNK)),
    # The builder's own mask for MultiHeadAttention fits prompts only.
    "llama_genai_mha": Case(DECODER, (PROMPT, (1, 7, 0)), "float16"),
    "llama_torchscript17": Case({"Linear": 8, "RMSNorm": 3, "Rotary": 2, "Attention": 1, "GatedSilu": 1}),
    "llama_torchscript17_kv": Case(
        {"Linear": 8, "RMSNorm": 3, "Rotary": 2, "Attention": 1, "GatedSilu": 1}, (PROMPT, STEP, CHUNK)
    ),
    # Its window of 40 keys is longer than these.
    "mistral_dynamo18_kv": Case(DECODER, (PROMPT, STEP, CHUNK)),
    "qwen2_dynamo18": Case(DECODER | {"Linear": 9, "LinearBias": 6}),
    "qwen2_genai_fp32": Case(PACKED | {"Linear": 9, "LinearBias": 2}, (PROMPT, STEP, CHUNK)),
    "qwen3_dynamo18_kv": Case(DECODER | {"RMSNorm": 9}, (PROMPT, STEP, CHUNK)),
}
ALL = pytest.mark.parametrize("name", CASES)


def canonicalized(name: str) -> tuple[ir.Model, Report]:
    model = ir.load(FIXTURES / f"{name}.onnx")
    return model, compile.canonicalize(model)


#: The same model for every test that does not change it.
canonical = functools.cache(canonicalized)


@functools.cache
def legal(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The canonical model, and the same written in standard operators."""
    model, _ = canonicalized(name)
    with tempfile.TemporaryDirectory() as folder:
        path = ir.save(model, Path(folder) / "m.onnx")[0]
        before = onnx.load(path)
        legalize(model, Report())
        attach_bodies(model, OPS)
        ir.save(model, path)
        return before, onnx.load(path)


def counts(model: ir.Model) -> dict[str, int]:
    return dict(Counter(n.op for n in model.graph.nodes if n.domain == DOMAIN))


def original(name: str) -> onnx.ModelProto:
    """The exporter's model; ONNX Runtime may not quantize the activations of MatMulNBits (accuracy_level 4)."""
    proto = onnx.load(FIXTURES / f"{name}.onnx")
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    return proto


def feeds(proto: onnx.ModelProto, size: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random tokens and cache, with large channels; the prompt of one sequence is padded where the mask is honoured."""
    batch, length, past = size
    inputs = {i.name: i.type.tensor_type for i in proto.graph.input}
    with_cache = any(name.startswith("past") for name in inputs)
    made: dict[str, np.ndarray] = {}
    for name, kind in inputs.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if name == "input_ids":
            made[name] = rng.integers(0, VOCAB, (batch, length))
        elif name == "attention_mask":
            made[name] = np.ones((batch, length + past if with_cache else length), np.int64)
            if batch > 1 and not with_cache:
                made[name][0, :2] = 0
        elif name == "position_ids":
            made[name] = np.tile(np.arange(length) + past, (batch, 1))
        elif name == "x":
            made[name] = rng.standard_normal((batch, 7, HIDDEN)).astype(dtype)
            made[name][..., [5, 37]] *= 40
        else:
            made[name] = rng.standard_normal((batch, KV_HEADS, past, HEAD)).astype(dtype)
            made[name][..., 3] *= 8
    return made


def assert_close(got: list[np.ndarray], want: list[np.ndarray], dtype: str) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(b).all()
        assert np.linalg.norm(a - b) <= TOLERANCE[dtype] * np.linalg.norm(b)


@ALL
def test_counts(name: str) -> None:
    model, report = canonical(name)
    assert counts(model) == CASES[name].counts
    assert not [f for f in report.findings if f.status != "rewritten"]


@ALL
def test_semantics(name: str, rng: np.random.Generator) -> None:
    case, before, after = CASES[name], original(name), legal(name)
    # ONNX Runtime has no bfloat16 elementwise operators on the CPU.
    run = run_reference if case.dtype == "bfloat16" else run_ort
    for size in case.sizes:
        given = feeds(before, size, rng)
        want = run(before, given)
        for proto in after:
            assert [o.name for o in proto.graph.output] == [o.name for o in before.graph.output]
            assert_close(run(proto, given), want, case.dtype)


@ALL
def test_idempotent(name: str, tmp_path: Path) -> None:
    model, _ = canonical(name)
    ir.save(model, tmp_path / "once.onnx")
    again = ir.load(tmp_path / "once.onnx")
    report = compile.canonicalize(again)
    assert not report.findings
    assert ir.text.dump(again) == ir.text.dump(ir.load(tmp_path / "once.onnx"))


@ALL
def test_deterministic(name: str) -> None:
    assert ir.text.dump(canonical(name)[0]) == ir.text.dump(canonicalized(name)[0])


@ALL
def test_legal_form_is_standard(name: str) -> None:
    _, proto = legal(name)
    assert {n.domain for n in proto.graph.node} == {""} and not proto.functions
    onnx.checker.check_model(proto, full_check=True)


def test_fixture_files_have_cases() -> None:
    assert {p.stem for p in FIXTURES.glob("*.onnx")} == set(CASES)


PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.mark.parametrize("name", ["llama_dynamo18_kv", "llama_dynamo23"])
def test_dynamo_names_are_module_paths(name: str) -> None:
    model, _ = canonical(name)
    linears = {n.name for n in model.graph.nodes if n.op == "Linear"}
    layers = itertools.product(range(2), PROJECTIONS)
    assert linears == {f"model.model.layers.{i}.{p}" for i, p in layers} | {"model.lm_head"}
    norms = {n.name for n in model.graph.nodes if n.op == "RMSNorm"}
    assert "model.model.layers.1.post_attention_layernorm" in norms and "model.model.norm" in norms
    assert "model.model.layers.0.self_attn.attention" in {n.name for n in model.graph.nodes if n.op == "Attention"}


def test_other_names_are_kept() -> None:
    model, _ = canonical("bert_torchscript17")
    names = {n.name for n in model.graph.nodes if n.op == "LinearBias"}
    assert "/model/encoder/layer.1/intermediate/dense/MatMul" in names
    model, _ = canonical("llama_genai_int4")
    assert "/model/layers.0/attn/qkv_proj/MatMul_Q4" in {n.name for n in model.graph.nodes if n.op == "Linear"}


def test_layers_share_mask_and_tables() -> None:
    """One mask and one pair of rotary tables for all layers, however often the exporter wrote them."""
    for name in ("llama_dynamo18", "llama_dynamo23_kv", "llama_genai_fp32"):
        model, _ = canonical(name)
        attentions = [n for n in model.graph.nodes if n.op == "Attention"]
        rotaries = [n for n in model.graph.nodes if n.op == "Rotary"]
        assert len({id(n.inputs[3]) for n in attentions}) == 1
        assert len({id(n.inputs[1]) for n in rotaries}) == len({id(n.inputs[2]) for n in rotaries}) == 1


@ALL
def test_residual_sums_have_known_shapes(name: str) -> None:
    """Schemes fuse a norm with the sum before it only where nothing is broadcast."""
    model, _ = canonical(name)
    norms = [n for n in model.graph.nodes if n.op in ("RMSNorm", "LayerNorm") and list(n.inputs[1].shape) == [HIDDEN]]
    sums = [n.inputs[0].inputs[0] for n in norms if n.inputs[0].inputs[0].op == "Add"]
    # BERT's sum of embeddings comes from tables, not from activations.
    residual = [[t.shape for t in s.inputs] for s in sums if "embeddings" not in s.name]
    assert len(residual) == max(0, len(norms) - 1) and all(a == b for a, b in residual)


def test_grouped_heads_are_not_repeated() -> None:
    """Except in Mistral, whose cache is cut to a length that shape inference does not know."""
    for name, case in CASES.items():
        if name == "mistral_dynamo18_kv":
            continue
        model, _ = canonical(name)
        attentions = [n for n in model.graph.nodes if n.op == "Attention"] if "RMSNorm" in case.counts else []
        assert not [
            n for n in attentions if n.inputs[1].inputs[0].op == "Reshape" or n.inputs[2].inputs[0].op == "Reshape"
        ]


@pytest.mark.weights("minilm")
def test_minilm(rng: np.random.Generator, tmp_path: Path) -> None:
    """A real BERT that others exported: 3 layers, TorchScript, opset 17."""
    path = assets.path("minilm")
    model = ir.load(path)
    report = compile.canonicalize(model)
    assert counts(model) == {"LinearBias": 18, "LayerNorm": 7, "Attention": 3, "Gelu": 3}
    assert not [f for f in report.findings if f.status != "rewritten"]
    ir.save(model, tmp_path / "canonical.onnx")
    ids = rng.integers(1000, 20000, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    given = {i.name: given[i.name] for i in model.graph.inputs}
    assert_close(run_ort(tmp_path / "canonical.onnx", given), run_ort(path, given), "float32")


@pytest.mark.rtx
@pytest.mark.parametrize("name", ["llama_genai_fp32", "llama_genai_fp16", "llama_genai_int4", "llama_genai_mha"])
def test_tensorrt_builds_what_had_no_plugins(name: str, tmp_path: Path) -> None:
    """TensorRT has no com.microsoft operators; canonical and written in standard operators, the models build."""
    from graphopt.engine.build import build

    onnx.save(legal(name)[1], tmp_path / "legal.onnx")
    built = build(tmp_path / "legal.onnx", tmp_path / "after.plan", _options(name))
    assert built.plan.stat().st_size == built.manifest.plan_bytes > 0
    # All 11 or 15 linears and the two products of each of 2 attentions.
    assert built.manifest.layers["MATRIX_MULTIPLY"] == CASES[name].counts["Linear"] + 4


def _options(name: str):
    from graphopt.engine.build import BuildOptions

    if name != "llama_genai_mha":
        return BuildOptions(flavour="rtx")
    caches = ",".join(f"past_key_values.{i}.{kind}:2x{KV_HEADS}x0x{HEAD}" for i in (0, 1) for kind in ("key", "value"))
    fixed = f"input_ids:2x5,attention_mask:2x5,position_ids:2x5,{caches}"
    return BuildOptions(flavour="rtx", min_shapes=(fixed,), opt_shapes=(fixed,), max_shapes=(fixed,))
