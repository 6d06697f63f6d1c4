"""TensorRT-RTX takes the decoder as it is, with an empty past in the profile; no GPU needed."""

from pathlib import Path

import pytest

from graphopt.models.llama import build_llama
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights

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
