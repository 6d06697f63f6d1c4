import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.errors import ModelError
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.safetensors_weights import SafetensorsFile, SafetensorsWeights
from graphopt.models.weights import RandomWeights

Write = Callable[[Path, dict[str, np.ndarray]], None]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        max_size=5,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_tensors_come_back_bit_for_bit(
    tmp_path: Path,
    write_safetensors: Write,
    tensors: dict[str, tuple[Any, list[int]]],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, (dtype, shape) in tensors.items()}
    write_safetensors(tmp_path / "any.safetensors", arrays)
    file = SafetensorsFile(tmp_path / "any.safetensors")
    assert file.names == list(arrays)
    for name, array in arrays.items():
        read = file.tensor(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def checkpoint(folder: Path, config: LlamaConfig, write: Write, shards: int) -> RandomWeights[LlamaConfig]:
    """Write config.json and the weights, in one file or in ``shards`` with an index."""
    source = RandomWeights(config)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    names = list(config.weight_shapes())
    if shards == 1:
        write(folder / "model.safetensors", {n: source.tensor(n) for n in names})
        return source
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write(folder / file, {n: source.tensor(n) for n in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return source


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_a_checkpoint(tmp_path: Path, tiny: LlamaConfig, write_safetensors: Write, shards: int) -> None:
    source = checkpoint(tmp_path, tiny, write_safetensors, shards)
    read = SafetensorsWeights(tmp_path)
    assert read.config == tiny
    for name in tiny.weight_shapes():
        np.testing.assert_array_equal(read.tensor(name), source.tensor(name))
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.bias'; did you mean 'lm_head\.weight'"):
        read.tensor("lm_head.bias")


@pytest.mark.parametrize(
    ("header", "data", "culprit"),
    [
        ({"a": entry(0, 8)}, b"1234567", "is truncated: tensor 'a' ends at byte"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789abc", "'b' overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, b"1" * 20, "'b' leaves a gap"),
        ({"a": entry(0, 8)}, b"1" * 9, "1 bytes follow its last tensor"),
        ({"a": entry(0, 8, (3,))}, b"1" * 8, "'a' has 8 bytes, but F32 of shape [3] needs 12"),
        ({"a": entry(8, 0)}, b"1" * 8, "'a' has -8 bytes"),
        ({"a": entry(-8, 0)}, b"1" * 8, "entry of 'a'"),
        ({"a": entry(0, 8, (-2,))}, b"1" * 8, "entry of 'a'"),
        ({"a": entry(0, 8, dtype="F12")}, b"1" * 8, "unknown dtype 'F12'"),
        ({"a": {"dtype": "F32"}}, b"", "entry of 'a'"),
        ({"a": 3}, b"", "entry of 'a'"),
        ([1, 2], b"", "not a table of tensors"),
        (b"{broken", b"", "header is not JSON"),
        (b"\xff\xfe", b"", "header is not JSON"),
        (b'{"a": 1, "a": 2}', b"", "names 'a' twice"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, header: Any, data: bytes, culprit: str) -> None:
    path = raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(ModelError) as error:
        SafetensorsFile(path)
    assert culprit in str(error.value)
    assert "bad.safetensors" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", (1 << 40).to_bytes(8, "little"), (99).to_bytes(8, "little") + b"{}"]
)
def test_files_that_are_cut_in_the_header_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cut.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file, or it is truncated"):
        SafetensorsFile(tmp_path / "cut.safetensors")


def test_quantized_tensors_are_refused_when_asked_for(tmp_path: Path) -> None:
    file = SafetensorsFile(raw(tmp_path / "gptq.safetensors", {"qweight": entry(0, 8, (2,), "I32")}, b"1" * 8))
    with pytest.raises(ModelError, match="'qweight' has dtype I32"):
        file.tensor("qweight")


@pytest.mark.parametrize("name", ["self_attn.q_norm.weight", "self_attn.q_proj.bias", "mlp.down_proj.bias"])
def test_norms_and_biases_that_config_json_does_not_mention(
    tmp_path: Path, tiny: LlamaConfig, write_safetensors: Write, name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf()))
    for layer, message in ((1, rf"tensor 'model\.layers\.1\.{name}' is of no decoder"), (2, None)):
        stored = {n: np.zeros(shape, np.float16) for n, shape in tiny.weight_shapes().items()}
        stored[f"model.layers.{layer}.{name}"] = np.ones(8, np.float16)
        stored[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        write_safetensors(tmp_path / "model.safetensors", stored)
        if message is None:
            SafetensorsWeights(tmp_path)
        else:
            with pytest.raises(ModelError, match=message):
                SafetensorsWeights(tmp_path)


def test_an_index_may_not_leave_the_folder(tmp_path: Path, tiny: LlamaConfig, write_safetensors: Write) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint(folder, tiny, write_safetensors, 2)
    index = folder / "model.safetensors.index.json"
    for location in ("../outside.safetensors", "/etc/passwd", ".."):
        index.write_text(json.dumps({"weight_map": {"a": location}}))
        with pytest.raises(ModelError, match="outside the checkpoint's folder"):
            SafetensorsWeights(folder)


def test_missing_files_are_named(tmp_path: Path, tiny: LlamaConfig, write_safetensors: Write) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        SafetensorsWeights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf()))
    with pytest.raises(ModelError, match=r"model\.safetensors does not exist"):
        SafetensorsWeights(tmp_path)
    checkpoint(tmp_path, tiny, write_safetensors, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors, which is missing"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_damaged_indexes_are_refused(tmp_path: Path, tiny: LlamaConfig, write_safetensors: Write, content: str) -> None:
    checkpoint(tmp_path, tiny, write_safetensors, 2)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        SafetensorsWeights(tmp_path)
