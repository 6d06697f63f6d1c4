"""`graphopt bench kernels` where it cannot run, and what it prints."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from graphopt.bench.record import Row
from graphopt.bench.timer import Timing
from graphopt.cli import bench
from graphopt.cli.main import app

ROOT = Path(__file__).resolve().parents[3]


def test_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    library = tmp_path / "libgraphopt_plugins.so"
    library.touch()
    rows = tmp_path / "mixq.json"
    result = CliRunner().invoke(app, ["bench", "kernels", "--plugins", str(library), "-o", str(rows)])
    assert result.exit_code == 2
    assert "pip install torch" in result.stderr
    assert not rows.exists()


def test_unknown_suite() -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", "--suite", "mixqq"])
    assert result.exit_code == 2
    assert "did you mean 'mixq'" in result.stderr


def test_kernels_need_none_of_the_compilers_packages() -> None:
    """A GPU host has torch and numpy, but not what models need."""
    absent = ("onnx_graphsurgeon", "onnxruntime", "yaml", "tensorrt")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); sys.modules['torch'] = None\n"
        "from graphopt.cli.main import main; sys.argv = ['graphopt', 'bench', 'kernels']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_names_sizes_share_and_peers() -> None:
    row = Row.of(
        Timing(20.0, 0.01), 10.0, suite="mixq", case="linear", shape=(16, 64, 128, 32), moved=1,
        peers={"torch_fp16": 30.0},
    )  # fmt: skip
    line = bench._line(row)
    assert " ".join(line.split()) == "linear M=16 N=64 K=128 20.00 us 50% of floor 1.50x torch_fp16"


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A suite that has two rows on a machine without a GPU; the arguments that run it."""
    rows = [
        Row.of(Timing(us, 0.01), 10.0, suite="mixq", case="linear", shape=(16, 64, 128, 32), moved=1)
        for us in (20.0, 40.0)
    ]
    ceilings = SimpleNamespace(fields=lambda: {"copy_tb_s": 3.0, "fp16_tflop_s": 600.0})
    monkeypatch.setattr("graphopt.bench.capi.Library", lambda path: None)
    monkeypatch.setattr("graphopt.bench.ceilings.Ceilings.measure", lambda: ceilings)
    monkeypatch.setattr("graphopt.bench.record.environment", lambda library: {"gpu": "a GPU"})
    monkeypatch.setattr("graphopt.bench.suites.suite", lambda name: SimpleNamespace(run=lambda *_: iter(rows)))
    (library := tmp_path / "libgraphopt_plugins.so").touch()
    return ["bench", "kernels", "--plugins", str(library)]


def test_json_is_on_standard_output(two_rows: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*two_rows, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["rows"]
    assert [(row["us"], row["gpu"]) for row in found] == [(20.0, "a GPU"), (40.0, "a GPU")]
    assert "50% of floor" in result.stderr


def test_a_file_has_the_rows(two_rows: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mixq.json"
    result = CliRunner().invoke(app, [*two_rows, "-o", str(file)])
    assert result.exit_code == 0, result.output
    assert [row["us"] for row in json.loads(file.read_text())] == [20.0, 40.0]
    assert "50% of floor" in result.stdout
