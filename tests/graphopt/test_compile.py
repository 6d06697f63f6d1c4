"""The whole compiler on built models: what comes out, that it computes the same, and what it costs in memory."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml

from graphopt import compile, ir
from graphopt.calibrate import collect
from graphopt.calibrate.feeds import declared, from_tokens
from graphopt.core.op import custom_nodes
from graphopt.core.recipe import Recipe
from graphopt.core.statistics import Statistics
from graphopt.errors import RecipeError
from graphopt.ir import origin
from graphopt.models import bert, llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from tests.support.arrays import weight
from tests.support.decoders import CONFIG

PRESET = Recipe.preset("mixq-w8a8", SCHEMES)


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    llama.build_llama(CONFIG, RandomWeights(CONFIG, seed=3, outliers=4), path)
    return path


def logits(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: np.ndarray = ort.InferenceSession(path, options).run(None, feeds)[0]
    return result


def feeds(model: ir.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    tokens = rng.integers(0, 96, (2, 7))
    given: dict[str, Any] = {
        "input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": np.arange(7)[None].repeat(2, 0)
    }  # fmt: skip
    for tensor in model.graph.inputs:
        if tensor.name.startswith("past"):
            given[tensor.name] = np.zeros((2, 2, 0, 16), np.float32)
    return given


def test_canonical_decoder_has_the_canonical_ops_and_the_same_logits(decoder: Path, tmp_path: Path) -> None:
    model = ir.load(decoder)
    given = feeds(model, np.random.default_rng(0))
    compile.canonicalize(model)
    counts = Counter(n.op for n in custom_nodes(model))
    assert counts == {"Linear": 15, "RMSNorm": 5, "Rotary": 4, "Attention": 2, "GatedSilu": 2}
    (path, *_) = ir.save(model, tmp_path / "canonical.onnx")
    want = logits(decoder, given)
    # Float32 noise of five norms and fifteen products of at most 160 terms.
    np.testing.assert_allclose(logits(path, given), want, atol=2e-5 * np.abs(want).max())


def error(model: ir.Model, original: Path, given: dict[str, np.ndarray]) -> float:
    (path, *_) = ir.save(model, original.with_name("opt.onnx"))
    want = logits(original, given)
    return float(np.linalg.norm(logits(path, given) - want) / np.linalg.norm(want))


def test_optimized_decoder_fuses_every_norm_residual_and_gate(decoder: Path) -> None:
    canonical, model, uncalibrated, online = (ir.load(decoder) for _ in range(4))
    given = feeds(model, np.random.default_rng(0))
    compile.canonicalize(canonical)
    report = compile.optimize(model, PRESET, collect(canonical, [given]))
    # The first norm has no residual before it; o_proj reads attention, which nothing fuses into. Gate and up are
    # one product.
    assert Counter(n.op for n in custom_nodes(model)) == {
        "MixQLinear": 13, "MixQRMSNorm": 1, "MixQAddRMSNorm": 4, "MixQSwiGLU": 2, "MixQQuantize": 2
    }  # fmt: skip
    assert report.counts("rewritten")["mixq"] == 15
    # Fifteen linears, each within 1 %, add up like independent errors.
    assert error(model, decoder, given) < 0.04
    settings = {"match": "*", "scheme": "mixq", "settings": {"outliers": {"online": False}}}
    compile.optimize(uncalibrated, Recipe.parse({"version": 1, "layers": [settings]}, SCHEMES, "offline"))
    assert error(model, decoder, given) < 0.6 * error(uncalibrated, decoder, given)
    compile.optimize(online, PRESET)
    assert error(online, decoder, given) < 0.04


def test_optimized_encoder_fuses_residual_norms_and_gelu(tmp_path: Path) -> None:
    config = bert.BertConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    bert.build_bert(config, RandomWeights(config, seed=5), tmp_path / "bert.onnx")
    model = ir.load(tmp_path / "bert.onnx")
    compile.optimize(model, PRESET)
    counts = Counter(n.op for n in custom_nodes(model))
    assert counts["MixQLinearOnline"] >= 12
    assert counts["MixQGeluOnline"] == 2
    assert counts["MixQAddLayerNormOnline"] >= 3


def test_dry_run_reports_what_the_run_does_and_keeps_weights_untouched(decoder: Path) -> None:
    dry = compile.optimize(ir.load(decoder), PRESET, dry_run=True)
    real = compile.optimize(ir.load(decoder), PRESET)
    assert [f.node for f in dry.findings if f.rule == "mixq"] == [f.node for f in real.findings if f.rule == "mixq"]


def test_recipe_none_is_reported_with_its_source(decoder: Path) -> None:
    recipe = Recipe.preset("mixq-w8a8", SCHEMES, ["*lm_head*"])
    model = ir.load(decoder)
    report = compile.optimize(model, recipe)
    left = [(f.node, f.reason) for f in report.findings if f.rule == "recipe"]
    assert left == [("/lm_head/MatMul", "preset mixq-w8a8 says scheme none")]
    assert Counter(n.op for n in custom_nodes(model))["MixQLinearOnline"] == 12


@pytest.mark.parametrize(("measured", "notes"), [("model.onnx", 0), ("chat.onnx", 1), (None, 0)])
def test_statistics_of_another_file_are_worth_knowing(decoder: Path, measured: str | None, notes: int) -> None:
    model = ir.load(decoder)
    statistics = Statistics({}, {} if measured is None else {"model": measured})
    report = compile.optimize(model, Recipe.preset("none", SCHEMES), statistics)
    found = [f.reason for f in report.findings if f.rule == "statistics"]
    assert found == ["the statistics were measured on another file, 'chat.onnx'"] * notes


def test_linears_in_branches_are_named_and_left(tmp_path: Path, rng: np.random.Generator) -> None:
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info

    def branch(name: str) -> onnx.GraphProto:
        w = onnx.numpy_helper.from_array(weight(rng, 16, 16), f"{name}_w")
        fc = node("MatMul", ["x", w.name], [name], name=f"/{name}/fc")
        return onnx.helper.make_graph([fc], name, [], [info(name, 1, ["b", 16])], [w])

    merged = node("If", ["cached"], ["y"], then_branch=branch("with_past"), else_branch=branch("first"))
    ports = [info("x", 1, ["b", 16]), info("cached", onnx.TensorProto.BOOL, [1])], [info("y", 1, ["b", 16])]
    graph = onnx.helper.make_graph([merged], "g", *ports)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    report = compile.optimize(ir.load(tmp_path / "m.onnx"), PRESET)
    left = {f.node: f.reason for f in report.findings if f.status == "skipped"}
    assert set(left) == {"/with_past/fc", "/first/fc"}
    assert all("a branch of an If" in reason for reason in left.values())


def test_a_model_without_linears_says_so(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float[n] x) => (float[n] y) '
                                      "{ y = Relu(x) }"), tmp_path / "m.onnx")  # fmt: skip
    report = compile.optimize(ir.load(tmp_path / "m.onnx"), PRESET)
    assert [(f.status, f.reason) for f in report.findings] == [("note", "found no linear layer to quantize")]


def test_glob_that_matches_nothing_is_an_error(decoder: Path) -> None:
    with pytest.raises(RecipeError, match=r"'\*lm_haed\*' matches none of the 15 linears"):
        compile.optimize(ir.load(decoder), Recipe.preset("mixq-w8a8", SCHEMES, ["*lm_haed*"]))


def test_optimizing_twice_changes_nothing_more(decoder: Path, tmp_path: Path) -> None:
    model = ir.load(decoder)
    compile.optimize(model, PRESET)
    ir.save(model, tmp_path / "once.onnx")
    again = ir.load(tmp_path / "once.onnx")
    report = compile.optimize(again, PRESET)
    assert Counter(n.op for n in custom_nodes(again)) == Counter(n.op for n in custom_nodes(model))
    notes = [f.reason for f in report.findings if f.status == "note"]
    assert notes == [
        "its linears went through 'mixq-w8a8' before; optimize the file that it was made from for another scheme"
    ]


def test_optimizing_in_two_steps_computes_what_one_does(tmp_path: Path) -> None:
    """The second step finds the rotaries and attentions that the first wrote out, under names that they had there."""
    source = Path(__file__).parents[1] / "fixtures" / "exporters" / "llama_dynamo18_kv.onnx"
    steps = [
        Recipe.preset("mixq-w8a8", SCHEMES, ["*mlp*", "*lm_head*"]),
        Recipe.preset("mant-w4a16", SCHEMES, ["*lm_head*"]),
        Recipe.preset("none", SCHEMES),
    ]
    layers = [{"match": g, "scheme": s} for g, s in (("*lm_head*", "none"), ("*mlp*", "mant"), ("*", "mixq"))]
    (tmp_path / "once.yaml").write_text(yaml.safe_dump({"version": 1, "layers": layers}))
    once = ir.load(source)
    compile.optimize(once, Recipe.load(tmp_path / "once.yaml", SCHEMES, CACHES))
    ir.save(once, tmp_path / "once.onnx")
    path = source
    for number, recipe in enumerate(steps):
        model = ir.load(path)
        compile.optimize(model, recipe)
        path = tmp_path / f"{number}.onnx"
        ir.save(model, path)
    ids = np.random.default_rng(1).integers(0, 72, (1, 7))
    feed = from_tokens(declared(ir.load(source)), ids)
    np.testing.assert_allclose(logits(path, feed), logits(tmp_path / "once.onnx", feed), rtol=1e-3, atol=1e-3)


def test_ir_is_dumped_after_every_stage(decoder: Path, tmp_path: Path) -> None:
    report = compile.optimize(ir.load(decoder), PRESET, dump_dir=tmp_path / "ir")
    dumped = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert [n[4:-4] for n in dumped] == list(report.seconds)
    assert "graphopt.MixQLinear" in (tmp_path / "ir" / dumped[-1]).read_text()


_MEASURE = """
import sys, threading, time
from pathlib import Path
peak = 0
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line)
def watch():
    global peak
    while True:
        peak = max(peak, anonymous()); time.sleep(0.002)
from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.passes import CACHES, SCHEMES
from tests.support.arrays import weight
from tests.support.decoders import CONFIG
start = anonymous()
threading.Thread(target=watch, daemon=True).start()
model = ir.load(sys.argv[1])
compile.optimize(model, Recipe.preset("mixq-w8a8", SCHEMES))
ir.save(model, sys.argv[2])
print(1024 * (peak - start))
"""


def test_peak_memory_of_optimize_is_a_few_of_the_largest_tensors(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=512, hidden_size=768, intermediate_size=6144, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, head_dim=96,
    )  # fmt: skip
    source = tmp_path / "model.onnx"
    llama.build_llama(config, RandomWeights(config, seed=1), source)
    total = (tmp_path / "model.onnx.data").stat().st_size
    largest = 4 * config.hidden_size * config.intermediate_size
    assert total > 14 * largest  # so that holding the model would show
    command = [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "opt.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # One weight: its codes (1/4), and a chunk of float32 rows with a few temporaries of the same size.
    assert int(done.stdout) < 6 * largest


def test_the_model_says_what_its_weights_went_through(decoder: Path, tmp_path: Path) -> None:
    for preset, said in (("mixq-w8a8", "mixq-w8a8"), ("none", None)):
        model = ir.load(decoder)
        compile.optimize(model, Recipe.preset(preset, SCHEMES))
        ir.save(model, tmp_path / "o.onnx")
        assert origin.read(onnx.load(tmp_path / "o.onnx").metadata_props) == said
