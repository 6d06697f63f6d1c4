"""The proof by probes: what the structure of a graph cannot say is found by its logits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import api, compile, ir
from graphopt.calibrate import collect
from graphopt.calibrate.feeds import declared, random
from graphopt.deploy.tensorrt_llm.network import Network, read
from graphopt.deploy.tensorrt_llm.probe import compare, logits
from graphopt.errors import DeployError
from graphopt.models.llama_config import LlamaConfig

Optimized = Callable[..., Path]
EXPORTERS = Path(__file__).parents[3] / "fixtures" / "exporters"


def opened(path: Path) -> tuple[Path, Network, LlamaConfig]:
    return path, read(ir.load(path)), LlamaConfig.from_hf(json.loads(path.with_name("config.json").read_text()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scheme", ["mixq-w8a8", "mixq-w4a8"])
def test_a_checkpoint_is_its_graph(optimized: Optimized, scheme: str, dtype: str) -> None:
    assert compare(*opened(optimized(scheme, dtype))) < {"float32": 2e-3, "float16": 4e-2, "bfloat16": 1e-6}[dtype]


@pytest.mark.parametrize("sizes", [{"qkv_bias": True}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}])
def test_variants_of_the_family(optimized: Optimized, sizes: dict[str, object]) -> None:
    assert compare(*opened(optimized("mixq-w8a8", **sizes))) < 2e-3


@pytest.mark.parametrize(
    "name",
    [
        "llama_dynamo18", "llama_dynamo18_kv", "llama_dynamo18_fp16", "llama_dynamo18_tied", "llama_dynamo23_kv",
        "llama_torchscript17_kv", "llama_genai_mha", "mistral_dynamo18_kv", "qwen2_dynamo18",
    ],
)  # fmt: skip
def test_what_exporters_write(name: str, tmp_path: Path) -> None:
    """Graphs of torch and of onnxruntime-genai, with the configurations that their models had (make.py there)."""
    source = EXPORTERS / f"{name}.onnx"
    kind = name.partition("_")[0]
    statistics = api.load(source)
    feeds = list(random(declared(statistics), samples=2, length=8, seed=1))
    compile.canonicalize(statistics)
    model = api.load(source)
    api.optimize(model, "mixq-w8a8", statistics=collect(statistics, feeds, source={}))
    api.save(model, tmp_path / "model.opt.onnx")
    found = read(ir.load(tmp_path / "model.opt.onnx"))
    config = LlamaConfig(
        vocab_size=72,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=found.layers,
        num_attention_heads=4,
        num_key_value_heads=found.linears["model.layers.0.self_attn.k_proj"].rows // 16,
        head_dim=16,
        rms_norm_eps=1e-6,
        max_position_embeddings=40 if kind == "mistral" else 64,
        qkv_bias=kind == "qwen2",
    )
    assert compare(tmp_path / "model.opt.onnx", found, config) < (4e-2 if name.endswith(("fp16", "mha")) else 5e-3)
    with pytest.raises(DeployError, match="computes other logits"):
        compare(tmp_path / "model.opt.onnx", found, replace(config, rope_theta=100.0))


def swapped(network: Network, a: str, b: str) -> Network:
    linears = dict(network.linears)
    for i in range(network.layers):
        first, second = f"model.layers.{i}.self_attn.{a}", f"model.layers.{i}.self_attn.{b}"
        linears[first], linears[second] = linears[second], linears[first]
    return replace(network, linears=linears)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_structure_does_not_say_is_found(optimized: Optimized, dtype: str) -> None:
    path, network, config = opened(optimized("mixq-w8a8", dtype, num_key_value_heads=4))
    slow = (1.0,) * (config.head_dim // 2 - 3) + (8.0,) * 3
    wrong = {
        "rotary base": (network, replace(config, rope_theta=2e4)),
        "scaling of slow frequencies": (network, replace(config, rope_factors=slow)),
        "k is q": (swapped(network, "q_proj", "k_proj"), config),
        "v is k": (swapped(network, "k_proj", "v_proj"), config),
    }
    for name, (other, settings) in wrong.items():
        with pytest.raises(DeployError, match="computes other logits"):
            compare(path, other, settings)
            pytest.fail(f"{name} was not found")


def test_another_scale_of_the_attention_is_found(optimized: Optimized, tmp_path: Path) -> None:
    """Grounds to run the graph: no configuration says this."""
    path = optimized("mixq-w8a8", "float32", num_key_value_heads=4)
    proto = onnx.load(path)
    changed = 0
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.shape == () and np.isclose(value, 16**-0.5):
            tensor.CopyFrom(numpy_helper.from_array(np.array(16**-1.0, value.dtype), tensor.name))
            changed += 1
    assert changed, "the scale is not where this test looks for it"
    onnx.save(proto, tmp_path / "model.opt.onnx")
    _, network, config = opened(path)
    with pytest.raises(DeployError, match="computes other logits"):
        compare(tmp_path / "model.opt.onnx", network, config)


def test_a_graph_that_cannot_be_run_here_says_how_to_go_on(optimized: Optimized, tmp_path: Path) -> None:
    path, network, config = opened(optimized())
    (tmp_path / "m.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DeployError, match="--no-verify"):
        compare(tmp_path / "m.onnx", network, config)


def test_logits_are_causal_and_follow_the_positions(optimized: Optimized) -> None:
    _, network, config = opened(optimized())
    tokens = np.array([3, 1, 4, 1, 5])
    whole = logits(network, config, tokens, np.arange(5))
    np.testing.assert_allclose(logits(network, config, tokens[:3], np.arange(3)), whole[:3], rtol=1e-4, atol=1e-4)
    moved = logits(network, config, tokens, np.arange(5) + 7)
    # Rotary angles are relative.
    assert np.linalg.norm(moved - whole) / np.linalg.norm(whole) < 2e-3
    assert np.linalg.norm(logits(network, config, tokens, np.arange(5) * 3) - whole) / np.linalg.norm(whole) > 1e-2
