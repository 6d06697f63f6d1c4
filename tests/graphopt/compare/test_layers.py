"""The first layer that differs in decoders: quantized, spoiled, and run by another runner."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import compile, ir
from graphopt.calibrate import collect
from graphopt.calibrate.feeds import declared, from_tokens
from graphopt.compare import Tolerance, compare_models
from graphopt.compare.side import Side
from graphopt.core.canonical import linears
from graphopt.core.recipe import Recipe
from graphopt.core.statistics import Statistics
from graphopt.errors import ModelError
from graphopt.models.llama import build_llama
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from graphopt.runners import tensorrt
from tests.support import host_engine
from tests.support.decoders import CONFIG, with_static_cache, write_decoder

FIRST = "/model/layers.0/self_attn/q_proj/MatMul"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("layers") / "model.onnx")


@pytest.fixture(scope="module")
def feeds(decoder: Path) -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (1, 20))
    return [from_tokens(declared(ir.load(decoder)), ids)]


def quantized(decoder: Path, path: Path, statistics: Statistics | None, preset: str = "mixq-w8a8") -> Path:
    model = ir.load(decoder)
    compile.optimize(model, Recipe.preset(preset, SCHEMES), statistics)
    ir.save(model, path)
    return path


def test_outliers_that_calibration_did_not_see(decoder: Path, feeds: list, tmp_path: Path) -> None:
    model = quantized(decoder, tmp_path / "opt.onnx", None)
    result = compare_models(model, decoder, feeds, Tolerance(rtol=1e-3), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == FIRST
    assert "are outside its set of 0 outliers" in result.culprit.cause


def test_quantization_alone(decoder: Path, feeds: list, tmp_path: Path) -> None:
    canonical = ir.load(decoder)
    compile.canonicalize(canonical)
    model = quantized(decoder, tmp_path / "opt.onnx", collect(canonical, feeds, threads=1))
    result = compare_models(model, decoder, feeds, Tolerance(rtol=1e-4), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == FIRST
    assert "quantization alone, with no outlier outside its set" in result.culprit.cause
    assert compare_models(model, decoder, feeds, Tolerance(rtol=0.1), per_layer=True, threads=1).culprit is None


@pytest.mark.parametrize(
    ("preset", "cause"),
    [
        ("mant-w4a16", "quantization: its weight has 4."),
        ("mant-w4a8", "and its scheme keeps none out: use one that does (mixq)"),
        ("vq-gptvq2", "quantization: its weight has "),
    ],
)
def test_quantization_by_the_other_schemes(decoder: Path, feeds: list, tmp_path: Path, preset: str, cause: str) -> None:
    model = quantized(decoder, tmp_path / "opt.onnx", None, preset)
    result = compare_models(model, decoder, feeds, Tolerance(rtol=1e-3), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == FIRST
    assert cause in result.culprit.cause


def test_a_quantized_cache(feeds: list, tmp_path: Path) -> None:
    """Its pages are longer than the chunk; the first linear behind it has the weight that it had."""
    wide = replace(CONFIG, head_dim=32)
    decoder = build_llama(wide, RandomWeights(wide, seed=3), tmp_path / "wide.onnx")[0]
    feeds = [from_tokens(declared(ir.load(decoder)), feed["input_ids"]) for feed in feeds]
    model = ir.load(decoder)
    compile.optimize(model, Recipe.preset("none", SCHEMES, ()).with_cache("kv-mant4", {}, CACHES), None)
    ir.save(model, tmp_path / "kv.onnx")
    result = compare_models(tmp_path / "kv.onnx", decoder, feeds, Tolerance(rtol=1e-3), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == "/model/layers.0/self_attn/o_proj/MatMul"
    assert result.culprit.cause.startswith("its input differs already (normalized error 0.")
    assert result.culprit.cause.endswith("it comes from MANTCachedAttention")
    assert [d.name for d in result.outputs] == ["logits"]
    assert result.other_form == tuple(f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value"))
    assert compare_models(tmp_path / "kv.onnx", decoder, feeds, Tolerance(rtol=0.1), threads=1).passed


def test_layers_that_are_quantized_alike(decoder: Path, feeds: list, tmp_path: Path) -> None:
    """Between two runs of one quantized file quantization is no cause; a spoiled scale is one of the operands."""
    model = quantized(decoder, tmp_path / "opt.onnx", None)
    proto = onnx.load(model)
    node = next(n for n in proto.graph.node if n.op_type.startswith("MixQLinear"))
    scale = next(t for t in proto.graph.initializer if t.name == node.input[4])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    onnx.save(proto, tmp_path / "bad.onnx")
    result = compare_models(tmp_path / "bad.onnx", model, feeds, Tolerance(rtol=1e-2), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == FIRST
    assert result.culprit.cause.startswith(f"it is a {node.op_type} in both models")


def test_layers_go_by_the_names_that_recipes_use(decoder: Path, feeds: list, tmp_path: Path) -> None:
    """Of merged gates nothing is there to compare, which is said; biases and Splits do not hide whose value it is."""
    model = quantized(decoder, tmp_path / "opt.onnx", None)
    result = compare_models(model, decoder, feeds, Tolerance(), per_layer=True, threads=1)
    canonical = ir.load(decoder)
    compile.canonicalize(canonical)
    names = [linear.name for linear in linears(canonical)]
    gates = [name for name in names if "gate_proj" in name or "up_proj" in name]
    assert result.uncompared == tuple(gates) and len(gates) == 4
    assert [d.layer for d in result.layers] == [name for name in names if name not in gates]
    data = result.to_dict()
    assert data["layers"][0]["layer"] == FIRST and data["uncompared"] == gates


def test_layers_of_exports_go_by_the_paths_of_their_modules(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "fixtures" / "exporters" / "qwen2_dynamo18.onnx"
    given = [from_tokens(declared(ir.load(source)), np.arange(5)[None])]
    model = quantized(source, tmp_path / "opt.onnx", None)
    result = compare_models(model, source, given, Tolerance(), per_layer=True, threads=1)
    assert result.layers[0].layer == "model.model.layers.0.self_attn.q_proj"
    assert all(name.endswith(("gate_proj", "up_proj")) for name in result.uncompared)


def test_a_spoiled_weight_is_found_where_it_is(decoder: Path, feeds: list, tmp_path: Path) -> None:
    proto = onnx.load(decoder)
    spoiled = next(n for n in proto.graph.node if n.name == "/model/layers.1/mlp/up_proj/MatMul")
    tensor = next(t for t in proto.graph.initializer if t.name == spoiled.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[3, 4] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "bad.onnx")
    result = compare_models(tmp_path / "bad.onnx", decoder, feeds, Tolerance(), per_layer=True, threads=1)
    assert result.culprit is not None
    assert result.culprit.layer == spoiled.name
    assert "NaN or Inf in 20 of 20 rows, out of finite inputs" in result.culprit.cause


def test_a_cache_updated_in_place_is_fed_from_the_same_tokens(decoder: Path, feeds: list, tmp_path: Path) -> None:
    static = with_static_cache(decoder, tmp_path / "static.onnx")
    result = compare_models(static, decoder, feeds, Tolerance(rtol=1e-5), per_layer=True, threads=1)
    assert result.passed
    assert result.outputs[0].name == "logits"
    assert len(result.layers) > 10
    assert all(d.passed for d in result.layers)


def test_a_cache_with_room_to_spare(decoder: Path, feeds: list, tmp_path: Path) -> None:
    """Rows that are filled are compared; layers that no scheme took have the names that they had."""
    static = with_static_cache(decoder, tmp_path / "static.onnx", 64)
    result = compare_models(static, decoder, feeds, Tolerance(rtol=1e-5), per_layer=True, threads=1)
    assert result.passed
    assert [d.name for d in result.outputs][:2] == ["logits", "present.0.key"]
    assert result.layers[0].layer == FIRST
    assert result.uncompared == ()


def test_layers_in_tensorrt(decoder: Path, feeds: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is built for every group of layers, for the shapes of the feeds."""
    host_engine.install(monkeypatch)
    built: list[str] = []

    def build(model: Path, plan: Path, options: object) -> None:
        built.append(model.name)
        shapes = dict(item.split(":") for item in options.opt_shapes[0].split(","))  # type: ignore[attr-defined]
        dims = {name: tuple(map(int, text.split("x"))) for name, text in shapes.items()}
        host_engine.write_plan(plan, model, [{name: (shape,) * 3 for name, shape in dims.items()}])

    monkeypatch.setattr(tensorrt, "build", build)
    sides = (Side(decoder, runner, threads=1) for runner in ("trt", "ort"))
    result = compare_models(*sides, feeds, Tolerance(rtol=1e-5), per_layer=True)
    assert result.passed
    assert all(d.passed for d in result.layers)
    assert built == ["model.onnx", "taps.onnx"]


def test_layers_of_a_plan_cannot_be_read(decoder: Path, feeds: list) -> None:
    with pytest.raises(ModelError, match=r"the layers of m\.plan cannot be read; give the model it was built from"):
        compare_models(Path("m.plan"), decoder, feeds, Tolerance(), per_layer=True)
