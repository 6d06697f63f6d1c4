"""The three files of a checkpoint: tensors, configuration, what TensorRT-LLM is told about quantization."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import ir
from graphopt.deploy.tensorrt_llm.checkpoint import (
    check_config,
    config_of,
    quant_config,
    tensors_of,
    write_safetensors,
)
from graphopt.deploy.tensorrt_llm.network import Network, read
from graphopt.errors import DeployError
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.safetensors_weights import SafetensorsFile

Optimized = Callable[..., Path]
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int32)


def opened(path: Path) -> tuple[Network, dict[str, Any], LlamaConfig, Path]:
    source = path.with_name("config.json")
    original = json.loads(source.read_text())
    return read(ir.load(path)), original, LlamaConfig.from_hf(original), source


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    types=st.lists(st.sampled_from(TYPES), min_size=6, max_size=6),
    data=st.binary(min_size=64, max_size=64),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], types: list[type], data: bytes
) -> None:
    path = tmp_path_factory.mktemp("safetensors") / "m.safetensors"
    arrays = {}
    for i, (shape, kind) in enumerate(zip(shapes, types, strict=False)):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays[f"t{i}"] = np.frombuffer((data * (size // len(data) + 1))[:size], kind).reshape(shape)
    write_safetensors(path, {name: lambda value=value: value for name, value in arrays.items()})
    file = SafetensorsFile(path)
    assert file.names == list(arrays)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert (header + 8) % 64 == 0, "data starts aligned"
    entries = json.loads(path.read_bytes()[8 : 8 + header])
    raw = path.read_bytes()[8 + header :]
    for name, value in arrays.items():
        first, last = entries[name]["data_offsets"]
        assert raw[first:last] == value.tobytes()
        assert entries[name]["shape"] == list(value.shape)
    assert len(raw) == sum(value.nbytes for value in arrays.values())


def test_a_transposed_tensor_is_written_row_by_row(tmp_path: Path, rng: np.random.Generator) -> None:
    value = rng.standard_normal((3, 5)).astype(np.float32)
    write_safetensors(tmp_path / "m.safetensors", {"t": lambda: value.T})
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "m.safetensors").tensor("t"), value.T)


@pytest.mark.parametrize(("scheme", "dtype"), [("mixq-w8a8", "float16"), ("mixq-w4a8", "float32")])
def test_names_and_types_are_those_that_the_package_reads(optimized: Optimized, scheme: str, dtype: str) -> None:
    network, original, config, source = opened(optimized(scheme, dtype))
    written = config_of(network, original, config, source)
    tensors = {name: read() for name, read in tensors_of(network).items()}
    layer = "model.layers.1"
    codes = ["wq"] if scheme == "mixq-w8a8" else ["wq4", "sg"]
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        settings = written["graphopt"]["linears"][f"{layer}.{name}"]
        assert settings == {
            "bits": 8 if codes == ["wq"] else 4,
            "outliers": tensors[f"{layer}.{name}.wo"].shape[1],
            "group": 0 if codes == ["wq"] else 64,
        }
        for operand in (*codes, "sw", "wo", "bias"):
            assert f"{layer}.{name}.{operand}" in tensors
    for module in ("input_layernorm", "post_attention_layernorm"):
        assert tensors[f"{layer}.{module}.idx"].dtype == np.int32
        assert tensors[f"{layer}.{module}.weight"].dtype == dtype
    assert tensors[f"{layer}.self_attn.o_proj.idx"].dtype == tensors[f"{layer}.mlp.down_proj.idx"].dtype == np.int32
    assert not any(".q_proj.idx" in name or ".gate_proj.idx" in name for name in tensors)
    assert written["torch_dtype"] == written["dtype"] == dtype
    assert written["architectures"] == ["GraphoptForCausalLM"]
    assert {k: v for k, v in written.items() if k in original and k not in ("dtype", "torch_dtype")} == {
        k: v for k, v in original.items() if k not in ("dtype", "torch_dtype")
    }


def test_tensorrt_llm_is_told_of_no_scheme_that_it_lacks(optimized: Optimized) -> None:
    network, *_ = opened(optimized("mixq-w4a8"))
    told = quant_config(network)["quantization"]
    assert told["quant_algo"] is None and told["kv_cache_quant_algo"] is None
    assert told["graphopt_layers"]["model.layers.0.mlp.up_proj"] == {"quant_algo": "MIXQ_W4A8", "group_size": 64}
    assert told["graphopt_layers"]["lm_head"] == {"quant_algo": "MIXQ_W8A8", "group_size": None}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 there, and 2 in the graph"),
        ({"vocab_size": 97}, "embedding"),
        ({"num_key_value_heads": 1}, "rows of model.layers.0.self_attn.k_proj is 16 there, and 32"),
        ({"intermediate_size": 128}, "mlp.gate_proj"),
        ({"rms_norm_eps": 1e-6}, "epsilon of model.layers.0.input_layernorm"),
    ],
)
def test_a_configuration_of_another_model_is_refused(optimized: Optimized, changes: dict[str, Any], named: str) -> None:
    network, _, config, source = opened(optimized())
    check_config(network, config, source)
    with pytest.raises(DeployError, match=named):
        check_config(network, replace(config, **changes), source)


def test_rotary_settings_that_nobody_else_knows_are_refused(optimized: Optimized) -> None:
    network, original, config, source = opened(optimized())
    scaled = {**original, "rope_scaling": {"rope_type": "factors", "factors": [1.0] * 8}}
    with pytest.raises(DeployError, match="rope_type 'factors' is known to graphopt alone"):
        config_of(network, scaled, config, source)
    llama3 = {"rope_type": "llama3", "factor": 8.0}
    assert config_of(network, {**original, "rope_scaling": llama3}, config, source)["rope_scaling"] == llama3


def test_code_named_by_a_configuration_does_not_come_along(optimized: Optimized) -> None:
    network, original, config, source = opened(optimized())
    hostile = {**original, "auto_map": {"AutoModel": "evil.Model"}, "quantization_config": {"quant_method": "fp8"}}
    written = config_of(network, hostile, config, source)
    assert "auto_map" not in written and "quantization_config" not in written
