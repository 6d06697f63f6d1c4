"""Configurations of engine models, compared with the manifest of their plan."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.deploy.triton.check import check_engine
from graphopt.deploy.triton.config import (
    EngineShape,
    engine_config,
    generate_config,
    kind_name,
    parse,
    plan_file,
    to_text,
)
from graphopt.deploy.triton.request import FIELDS
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.engine import manifest as manifests
from graphopt.engine.manifest import Manifest, Tensor
from graphopt.errors import DeployError
from graphopt.models.llama import build_llama
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from tests.support.decoders import CONFIG, static_profiles
from tests.support.language import write_bigram
from tests.support.plans import write_server_plan

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")

CAPACITY = 64


@pytest.fixture
def cached(text_model: Path, tmp_path: Path) -> Manifest:
    profiles = static_profiles(((1, 16, 32), CAPACITY))
    for profile in profiles:
        for name, (least, usual, most) in profile.items():
            profile[name] = (least, usual, (4, *most[1:]))
    return manifests.read(write_server_plan(tmp_path / "m.plan", text_model, profiles))


@pytest.fixture
def plain(tmp_path: Path) -> Manifest:
    model = write_bigram(tmp_path / "b.onnx", np.eye(32, k=1, dtype=np.float32), output="scores")
    return manifests.read(write_server_plan(tmp_path / "b.plan", model, [{"input_ids": ((1, 1), (2, 8), (8, 16))}]))


def placed(folder: Path, name: str, config: Any) -> Path:
    (folder / name / "1").mkdir(parents=True)
    for file in (config.default_model_filename, *config.cc_model_filenames.values()):
        (folder / name / "1" / file).write_bytes(b"plan")
    path = folder / name / "config.pbtxt"
    path.write_text(to_text(config))
    return path


def test_state_of_a_decoder(cached: Manifest, tmp_path: Path) -> None:
    config = engine_config("e", cached, EngineShape(4, streams=8))
    path = placed(tmp_path, "e", config)
    check_engine(path, cached)
    read = parse(path.read_text(), "it")
    assert read.platform == "tensorrt_plan"
    assert {i.name: (list(i.dims), i.HasField("reshape")) for i in read.input} == {
        "input_ids": ([-1], False),
        "start": ([1], True),
    }
    assert [o.name for o in read.output] == ["logits"]
    assert read.sequence_batching.oldest.max_candidate_sequences == 8
    states = {s.input_name: s for s in read.sequence_batching.state}
    assert cached.cache is not None
    assert {name: s.output_name for name, s in states.items()} == dict(cached.cache.pairs)
    assert all(list(s.dims) == [2, CAPACITY, 16] and s.use_same_buffer_for_input_output for s in states.values())


def test_caches_of_four_bits_cross_as_bytes(tmp_path: Path) -> None:
    """Triton knows no 4-bit types: codes are INT8, two to a byte, and all parts of the cache are state."""
    wide = replace(CONFIG, head_dim=64)
    build_llama(wide, RandomWeights(wide, seed=3), tmp_path / "growing.onnx")
    model = ir.load(tmp_path / "growing.onnx")
    compile.optimize(model, Recipe.preset("none", SCHEMES).with_cache("kv-mant4", {}, CACHES))
    ir.save(model, tmp_path / "m.onnx")
    sizes = {"batch_size": (1, 1, 4), "sequence_length": (1, 16, 32), "cache_capacity": (CAPACITY,) * 3}
    profile = {
        tensor.name: tuple(tuple(sizes[d][i] if isinstance(d, str) else int(d) for d in tensor.shape) for i in range(3))
        for tensor in model.graph.inputs
    }
    manifest = manifests.read(write_server_plan(tmp_path / "m.plan", tmp_path / "m.onnx", [profile]))
    config = engine_config("e", manifest, EngineShape(4, streams=8))
    check_engine(placed(tmp_path, "e", config), manifest)
    states = {s.input_name: s for s in parse(to_text(config), "it").sequence_batching.state}
    assert manifest.cache is not None and states.keys() == dict(manifest.cache.pairs).keys()
    keys = states["past_key_values.0.key"]
    assert kind_name(config, keys.data_type) == "TYPE_INT8"
    assert list(keys.dims) == [2, CAPACITY, 64 // 2], "a head of 64 channels in 32 bytes"
    assert {kind_name(config, s.data_type) for s in states.values()} == {"TYPE_INT8", "TYPE_FP16", "TYPE_FP32"}
    assert all(s.use_same_buffer_for_input_output for s in states.values())


def test_cuda_graphs_where_only_the_batch_varies(tmp_path: Path) -> None:
    model = write_bigram(tmp_path / "b.onnx", np.eye(32, k=1, dtype=np.float32), output="scores")
    fixed = onnx.load(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(fixed, tmp_path / "f.onnx")
    profile = {"input_ids": ((1, 8), (2, 8), (8, 8))}
    manifest = manifests.read(write_server_plan(tmp_path / "f.plan", tmp_path / "f.onnx", [profile]))
    assert engine_config("f", manifest, EngineShape(8)).optimization.cuda.graphs


def test_an_engine_without_state(plain: Manifest, tmp_path: Path) -> None:
    config = engine_config("p", plain, EngineShape(8), ["8.9", "9.0"])
    check_engine(placed(tmp_path, "p", config), plain)
    assert dict(config.cc_model_filenames) == {"8.9": "model_sm89.plan", "9.0": "model_sm90.plan"}
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["input_ids"].dims) == [8]
    assert not config.optimization.cuda.graphs, "its length is free"
    whole = engine_config("w", plain, EngineShape(0))
    check_engine(placed(tmp_path, "w", whole), plain)
    assert [list(i.dims) for i in whole.input] == [[-1, -1]]


def rename(config: Any) -> None:
    config.input[0].name = "tokens"


def retype(config: Any) -> None:
    config.input[0].data_type = 8


def add_axis(config: Any) -> None:
    config.input[0].dims.append(4)


def forget(config: Any) -> None:
    del config.input[0]


def widen(config: Any) -> None:
    config.max_batch_size = 5


def shrink_state(config: Any) -> None:
    config.sequence_batching.state[1].dims[2] = 15


def grow_state(config: Any) -> None:
    config.sequence_batching.state[1].dims[1] = config.sequence_batching.state[1].initial_state[0].dims[1] = 65


def other_beginning(config: Any) -> None:
    config.sequence_batching.state[0].initial_state[0].dims[1] = 3


def escape(config: Any) -> None:
    config.default_model_filename = "../1/model.plan"


def other_platform(config: Any) -> None:
    config.platform = "onnxruntime_onnx"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, "input 'tokens' is none of the engine"),
        (retype, "'input_ids' is TYPE_INT32, but TYPE_INT64 in the engine"),
        (add_axis, "'input_ids' has 3 axes, but 2 in the engine"),
        (forget, "input 'input_ids' of the engine is missing"),
        (widen, "axis 0 of 'input_ids' is 5, but the engine takes 1 to 4"),
        (shrink_state, "axis 3 of 'past_key_values.0.value' is 15, but the engine takes 16"),
        (grow_state, "axis 2 of 'past_key_values.0.value' is 65, but the engine takes 64 to 64"),
        (other_beginning, "the state 'past_key_values.0.key' begins with another shape or type"),
        (escape, "the file '../1/model.plan' is not in"),
        (other_platform, "platform is 'onnxruntime_onnx', not 'tensorrt_plan'"),
    ],
)
def test_every_difference_is_named(
    cached: Manifest, tmp_path: Path, damage: Callable[[Any], None], message: str
) -> None:
    config = engine_config("e", cached, EngineShape(4, streams=8))
    path = placed(tmp_path, "e", config)
    damage(config)
    path.write_text(to_text(config))
    with pytest.raises(DeployError) as e:
        check_engine(path, cached)
    assert message in str(e.value)


def test_types_that_triton_does_not_pass(plain: Manifest) -> None:
    odd = Manifest(**{**vars(plain), "inputs": (Tensor("input_ids", "FP8", (-1, -1)),)})
    with pytest.raises(DeployError, match="'input_ids' has type FP8, which Triton does not pass"):
        engine_config("p", odd, EngineShape(1))


def test_batches_need_a_batch_axis(plain: Manifest) -> None:
    fixed = Manifest(**{**vars(plain), "inputs": (Tensor("input_ids", "INT64", (1, -1)),)})
    with pytest.raises(DeployError, match=r"'input_ids' has no dynamic first axis.*give --max-batch 0"):
        engine_config("p", fixed, EngineShape(1))


def test_settings_go_through_the_configuration() -> None:
    settings = GenerateSettings("bls", "e", 3, 5, 100, 200, 2)
    config = parse(to_text(generate_config("g", settings)), "it")
    parameters = {k: {"string_value": v.string_value} for k, v in config.parameters.items()}
    assert GenerateSettings.from_parameters(parameters) == settings
    assert config.model_transaction_policy.decoupled
    assert [i.name for i in config.input if not i.optional] == ["text_input"]
    assert len(config.input) == len(FIELDS)


def test_text_that_is_no_configuration() -> None:
    with pytest.raises(DeployError, match=r"c.pbtxt is no model configuration of Triton: .*1:1.*nane"):
        parse('nane: "x"', "c.pbtxt")


@pytest.mark.parametrize("target", ["9", "9.0/../..", "", "12.0 and later"])
def test_targets_become_file_names_only_if_they_are_numbers(target: str) -> None:
    with pytest.raises(DeployError, match="no compute capability"):
        plan_file(target)
