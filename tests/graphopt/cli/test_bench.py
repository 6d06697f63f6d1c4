"""`graphopt bench kernels` where it cannot run, and what it prints."""

import subprocess
import sys
from pathlib import Path

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
    json = tmp_path / "mixq.json"
    result = CliRunner().invoke(app, ["bench", "kernels", "--plugins", str(library), "--json", str(json)])
    assert result.exit_code == 2
    assert "pip install torch" in result.stderr
    assert not json.exists()


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
