"""`graphopt inspect`."""

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from graphopt.cli.main import app

EXPORTED = Path(__file__).parents[2] / "fixtures" / "exporters" / "llama_dynamo18.onnx"


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_json() -> None:
    result = inspect(EXPORTED, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    proto = onnx.load(EXPORTED)
    assert data["opset"] == 18
    assert [t["name"] for t in data["inputs"]] == [t.name for t in proto.graph.input]
    assert [t["name"] for t in data["outputs"]] == [t.name for t in proto.graph.output]
    assert data["ops"]["MatMul"] == sum(n.op_type == "MatMul" for n in proto.graph.node)
    assert data["nodes"] == len(proto.graph.node)
    names = [row["name"] for row in data["linears"]]
    assert len(set(names)) == len(names) == 15
    assert any("q_proj" in n for n in names)


def test_weights_of_lowered_linears_are_their_codes(tmp_path: Path) -> None:
    optimized = tmp_path / "opt.onnx"
    assert CliRunner().invoke(app, ["optimize", str(EXPORTED), "-o", str(optimized)]).exit_code == 0
    rows = json.loads(inspect(optimized, "--json").stdout)["linears"]
    codes = {t.name for t in onnx.load(optimized).graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert rows
    assert {row["weight"] for row in rows} <= codes


def test_tables_name_the_linears() -> None:
    data = json.loads(inspect(EXPORTED, "--json").stdout)
    shown = inspect(EXPORTED).stdout
    assert all(row["name"] in shown for row in data["linears"])
    assert "MatMul" in inspect(EXPORTED, "--ops").stdout


def test_text() -> None:
    shown = inspect(EXPORTED, "--text").stdout
    assert shown.startswith("opset onnx 18")
    assert "%input_ids" in shown.replace("\n", "")


@pytest.mark.parametrize(("name", "part"), [("absent.onnx", "does not exist"), ("absent.plan", "absent.plan")])
def test_missing(tmp_path: Path, name: str, part: str) -> None:
    result = inspect(tmp_path / name)
    assert result.exit_code == 2
    assert part in result.stderr
