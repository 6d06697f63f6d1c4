import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from graphopt import ir
from graphopt.cli.main import app
from graphopt.core.statistics import Statistics
from tests.support.arrays import activations
from tests.support.canonical import CanonicalMlp


@pytest.fixture
def mlp(tmp_path: Path, rng: np.random.Generator) -> Path:
    ir.save(CanonicalMlp.random(rng).model, tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_statistics_of_npz_data(mlp: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    x = activations(rng, 3, 5, 24)
    np.savez(tmp_path / "data.npz", x=x)
    code, out, _ = _run(mlp, "--data", tmp_path / "data.npz", "-o", tmp_path / "s.npz", "--second-moment", "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["file"], data["linears"], data["tokens"]) == (str(tmp_path / "s.npz"), 3, 15)
    assert data["source"] == {
        "kind": "npz", "path": str(tmp_path / "data.npz"), "samples": 3, "model": "mlp.onnx",
    }  # fmt: skip
    entry = Statistics.load(tmp_path / "s.npz").linears["q"]
    np.testing.assert_array_equal(entry.absmax, np.abs(x).max(axis=(0, 1)))
    assert entry.second_moment is not None


def test_random_data_and_the_default_output(mlp: Path, tmp_path: Path) -> None:
    code, out, _ = _run(mlp, "--random", "7", "--samples", "2", "--length", "9")
    assert code == 0
    assert "largest outliers" in out
    assert {e.tokens for e in Statistics.load(tmp_path / "mlp.stats.npz").linears.values()} == {18}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.npz"], "data file none.npz does not exist"),
        (["--data", "a.npz", "--random", "1"], "--data and --random are two sources of data; give one"),
        (["--random", "1", "-o", "/no/such/folder/s.npz"], "cannot write /no/such/folder/s.npz"),
        (["--text", "none.txt"], "has no input 'input_ids' for text; give data with --data or --random"),
        ([], "has no input 'input_ids' for text; give data with --data or --random"),
    ],
)
def test_user_errors_exit_with_2(mlp: Path, arguments: list[str], message: str) -> None:
    code, out, err = _run(mlp, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error:")
    assert message in err


def test_a_model_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    code, _, err = _run(tmp_path / "m.onnx", "--random", "1")
    assert code == 2
    assert "m.onnx is not an ONNX" in err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_help_teaches() -> None:
    code, out, _ = _run("--help")
    assert code == 0
    assert "graphopt calibrate model.onnx --data inputs.npz" in out
