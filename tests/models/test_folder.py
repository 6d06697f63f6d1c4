import json
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt import ir
from graphopt.errors import OutputError
from graphopt.models.bert import BertConfig
from graphopt.models.folder import write_folder
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.safetensors_weights import SafetensorsWeights
from graphopt.models.weights import RandomWeights


def test_writes_a_decoder_that_its_configuration_describes(tmp_path: Path, tiny: LlamaConfig) -> None:
    files = write_folder(tmp_path / "new" / "folder", RandomWeights(tiny), dtype="float16", opset=20)
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data", "config.json"]
    assert {f.name for f in (tmp_path / "new" / "folder").iterdir()} == {f.name for f in files}
    table = json.loads(files[2].read_text())
    assert table["dtype"] == "float16"
    assert LlamaConfig.from_hf(table) == tiny
    assert ir.load(files[0]).opset == 20


def test_writes_an_encoder(tmp_path: Path) -> None:
    config = BertConfig(50, 32, 64, 1, 2)
    files = write_folder(tmp_path, RandomWeights(config))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    assert [i.name for i in ir.load(files[0]).graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


def test_safetensors_and_random_weights_give_the_same_file(
    tmp_path: Path, tiny: LlamaConfig, write_safetensors: Callable[..., None]
) -> None:
    source = RandomWeights(tiny)
    write_safetensors(tmp_path / "model.safetensors", {n: source.tensor(n) for n in tiny.weight_shapes()})
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf()))
    direct = write_folder(tmp_path / "direct", source)
    read = write_folder(tmp_path / "read", SafetensorsWeights(tmp_path))
    for a, b in zip(direct, read, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny: LlamaConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_folder(tmp_path / "file" / "folder", RandomWeights(tiny))
