"""`graphopt build`: JSON on standard output and nothing else there, one sentence and exit code 2 for user errors."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from graphopt.cli import build as verb
from graphopt.cli.main import app

pytestmark = pytest.mark.rtx

K = 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x W with rows named by the exporter."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx")
    w = np.random.default_rng(5).standard_normal((K, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])],
        [numpy_helper.from_array(w, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def run(arguments: Sequence[object]) -> Result:
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


def test_json_has_the_manifest_and_the_files(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    result = run([model, "-o", plan, "--max-batch", 6, "--workspace", "64M", "--json"])
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["plan"] == str(plan)
    assert json.loads(Path(data["manifest"]).read_text()) == {
        k: v for k, v in data.items() if k not in ("plan", "manifest", "warnings")
    }
    assert data["plugin_layers"] == 0
    assert data["workspace_bytes"] == 64 << 20
    assert data["profiles"][0]["ranges"]["x"] == {"min": [1, K], "opt": [3, K], "max": [6, K]}


def test_people_get_a_table(model: Path, tmp_path: Path) -> None:
    shapes = ["--min-shapes", "x:1x16", "--opt-shapes", "x:2x16", "--max-shapes", "x:4x16"]
    result = run([model, "-o", tmp_path / "m.plan", *shapes, "--compute-capability", "8.9"])
    assert result.exit_code == 0, result.stderr
    assert "1x16, 2x16, 4x16" in result.stdout
    assert "8.9" in result.stdout
    assert "0 for 0 custom nodes" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workspace", "3T"], "cannot read --workspace '3T'; write it like 512M or 4G"),
        (["--opt-shapes", "y:1x16"], "--opt-shapes names input 'y', which the model does not have; known: x"),
        (["--flavour", "rtz"], "unknown TensorRT flavour 'rtz'; did you mean 'rtx'?"),
        (["--max-batch", "0"], "--max-batch must be at least 1, not 0"),
        (["--opt-level", "9"], "the optimization level must be 0 to 5, not 9"),
        (["--compute-capability", "1.0"], "cannot build for compute capability '1.0'"),
    ],
)
def test_user_errors_are_one_sentence_and_exit_2(arguments: list[str], says: str, model: Path, tmp_path: Path) -> None:
    result = run([model, "-o", tmp_path / "m.plan", "--json", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr.replace("\n", "")
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx"}


def test_missing_model(tmp_path: Path) -> None:
    result = run([tmp_path / "gone.onnx", "-o", tmp_path / "m.plan"])
    assert result.exit_code == 2
    assert "gone.onnx does not exist" in result.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2K", 2048), ("512m", 512 << 20), ("4 GiB", 4 << 30), ("4GB", 4 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert verb._bytes(text) == size


def test_help_shows_how_to_use_it() -> None:
    result = run(["--help"])
    assert result.exit_code == 0
    assert "graphopt build model.opt.onnx -o model.plan" in result.stdout
