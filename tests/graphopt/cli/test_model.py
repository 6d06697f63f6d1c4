import json
from pathlib import Path

import onnxruntime as ort
import pytest
from typer.testing import CliRunner, Result

from graphopt.cli.model import app

SIZES = ["--hidden", "64", "--layers", "1", "--heads", "4", "--vocab", "96"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_llama_writes_what_it_says(tmp_path: Path) -> None:
    result = invoke("llama", *SIZES, "--kv-heads", "1", "--tied", "--dtype", "float16", "--json", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert {Path(f["path"]).name: f["bytes"] for f in data["files"]} == {
        p.name: p.stat().st_size for p in tmp_path.iterdir()
    }
    assert data["config"]["num_key_value_heads"] == 1
    session = ort.InferenceSession(tmp_path / "model.onnx")
    assert session.get_outputs()[0].shape[-1] == 96
    assert session.get_outputs()[0].type == "tensor(float16)"


def test_seed_and_outliers_change_the_weights_alone(tmp_path: Path) -> None:
    data = []
    for i, options in enumerate(([], [], ["--seed", "1"], ["--outliers", "2"])):
        assert invoke("llama", *SIZES, *options, "-o", tmp_path / str(i)).exit_code == 0
        data.append((tmp_path / str(i) / "model.onnx.data").read_bytes())
    assert data[0] == data[1]
    assert len(set(data)) == 3
    assert len({len(d) for d in data}) == 1


def test_bert(tmp_path: Path) -> None:
    result = invoke("bert", "--hidden", "32", "--ffn", "64", "--vocab", "50", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert "model.onnx.data" in result.stdout
    assert len(ort.InferenceSession(tmp_path / "model.onnx").get_inputs()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama", "--hidden", "65"], "hidden size 65 is not a multiple of 4 heads"),
        (["llama", "--preset", "llama"], "no preset 'llama'"),
        (["llama", *SIZES, "--dtype", "int8"], "dtype 'int8' is not supported"),
        (["llama", *SIZES, "--opset", "13"], "opset 13 is not supported"),
        (["gguf", "absent.gguf"], "absent.gguf does not exist"),
        (["safetensors", "absent"], "config.json does not exist"),
        (["smollm2"], "python scripts/fetch_assets.py smollm2"),
        (["smollm2", "--gguf", "absent.gguf"], "absent.gguf does not exist"),
    ],
)
def test_user_errors_exit_with_2_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("GRAPHOPT_ASSETS", str(tmp_path / "assets"))
    result = invoke(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert not list(tmp_path.glob("out/*"))


def test_help_teaches() -> None:
    for verb in ("smollm2", "gguf", "safetensors", "llama", "bert"):
        result = invoke(verb, "--help")
        assert result.exit_code == 0
        assert f"graphopt model {verb}" in " ".join(result.stdout.split())
