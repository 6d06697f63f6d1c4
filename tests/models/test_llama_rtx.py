"""TensorRT-RTX takes the decoder as it is, with an empty past in the profile, and with caches updated in place, also in
codes and beside quantized weights; no GPU needed."""

from pathlib import Path

import numpy as np
import pytest

from graphopt import compile, ir
from graphopt.core.canonical import linears
from graphopt.core.recipe import Recipe
from graphopt.core.statistics import AttentionStatistics, LinearStatistics, Statistics
from graphopt.engine import plugins
from graphopt.engine.build import BuildOptions, build
from graphopt.models.llama import build_llama, llama_model
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES

pytestmark = pytest.mark.rtx


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_engine_is_built(tmp_path: Path, dtype: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    config = llama_config(hidden_size=64, vocab_size=96)
    build_llama(config, RandomWeights(config, outliers=2), tmp_path / "m.onnx", dtype=dtype)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(tmp_path / "m.onnx")), [parser.get_error(i) for i in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = []
        for batch, seq, past in ((1, 1, 0), (1, 16, 16), (2, 64, 64)):
            sizes = {"input_ids": (batch, seq), "position_ids": (batch, seq), "attention_mask": (batch, past + seq)}
            cache = (batch, config.num_key_value_heads, past, config.head_dim)
            shapes.append(sizes.get(tensor.name, cache))
        profile.set_shape(tensor.name, *shapes)
    settings = builder.create_builder_config()
    assert settings.add_optimization_profile(profile) == 0
    plan = builder.build_serialized_network(network, settings)
    assert plan is not None
    assert plan.nbytes > 10_000


@pytest.mark.parametrize("capacity", [None, 64])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["plugin", "body"])
def test_an_engine_with_a_cache_updated_in_place(
    kind: str,
    dtype: str,
    capacity: int | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = llama_config(hidden_size=64, vocab_size=96)
    model = llama_model(config, RandomWeights(config, outliers=2), dtype=dtype)
    recipe = Recipe.preset("none", SCHEMES).with_cache("static", {"capacity": capacity}, CACHES)
    compile.optimize(model, recipe)
    ir.save(model, tmp_path / "m.onnx")
    if kind == "body":
        monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "gone.so"))
        options = BuildOptions(flavour="rtx", native_fallback=True)
    else:
        options = BuildOptions(flavour="rtx", plugins=request.getfixturevalue("plugin_library"))
    manifest = build(tmp_path / "m.onnx", tmp_path / "m.plan", options).manifest
    assert manifest.plugin_layers == (config.num_hidden_layers if kind == "plugin" else 0)
    rows = capacity or -1
    for cache in (t for t in (*manifest.inputs, *manifest.outputs) if t.name.startswith(("past", "present"))):
        assert cache.shape == (-1, config.num_key_value_heads, rows, config.head_dim)
    assert [t.name for t in manifest.inputs if "." not in t.name] == ["input_ids", "start"]


def statistics_of(config: LlamaConfig, source: Path, rng: np.random.Generator) -> Statistics:
    """Statistics of a random decoder whose keys and values are normal."""
    model = ir.load(source)
    compile.canonicalize(model)
    entries = {
        x.name: LinearStatistics(np.ones(x.shape[1], np.float32), np.ones(x.shape[1]), 1) for x in linears(model)
    }
    samples = rng.standard_normal((2, 300, config.num_key_value_heads, config.head_dim)).astype(np.float16)
    costs = np.ones(samples.shape[1:3], np.float32)
    names = (f"/model/layers.{i}/self_attn/MatMul_1" for i in range(config.num_hidden_layers))
    return Statistics(entries, {}, {name: AttentionStatistics(*samples, costs) for name in names})


@pytest.mark.parametrize(
    ("scheme", "cache", "rows"), [("vq-quip4", "cq4", 16), ("mixq-w8a8", "cq2", 8), ("mant-w4a16", "kv-mant4", 16)]
)
def test_an_engine_with_quantized_weights_and_cache(
    scheme: str, cache: str, rows: int, plugin_library: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """``rows`` is the bytes of a row of the cache: heads of 32 channels in 4 or 2 bits."""
    config = llama_config(hidden_size=128, vocab_size=96, num_hidden_layers=1)
    build_llama(config, RandomWeights(config, outliers=2), tmp_path / "source.onnx", dtype="float16")
    model = ir.load(tmp_path / "source.onnx")
    recipe = Recipe.preset(scheme, SCHEMES, ["*lm_head*"]).with_cache(cache, {}, CACHES)
    compile.optimize(model, recipe, statistics_of(config, tmp_path / "source.onnx", rng))
    ir.save(model, tmp_path / "m.onnx")
    options = BuildOptions(flavour="rtx", plugins=plugin_library)
    manifest = build(tmp_path / "m.onnx", tmp_path / "m.plan", options).manifest
    attention = "MANTCachedAttention" if cache == "kv-mant4" else "VQCachedAttention"
    assert manifest.custom_ops[attention] == config.num_hidden_layers
    assert manifest.plugin_layers == sum(manifest.custom_ops.values()) >= 8
    keys = next(t for t in manifest.inputs if t.name == "past_key_values.0.key")
    assert (keys.dtype, keys.shape) == ("INT8", (-1, config.num_key_value_heads, -1, rows))
