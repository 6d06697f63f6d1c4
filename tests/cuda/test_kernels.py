"""Every kernel against its numpy evaluator, through the C API and the plugins, where there is a GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.gpu
def test_kernels_equal_their_evaluators(plugin_library: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch, which holds the device memory in this test, is not installed")
    report = tmp_path / "correctness.json"
    command = [sys.executable, ROOT / "benchmarks/correctness.py", "--quick", "--library", plugin_library]
    subprocess.run([*command, "--host", plugin_library.with_name("host_v3"), "--json", report], check=False)
    failures = [failure for entry in json.loads(report.read_text())["ops"] for failure in entry["failures"]]
    assert not failures


def test_the_committed_gpu_results_have_no_failures() -> None:
    path = ROOT / "benchmarks/results/h100/correctness.json"
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT)} is made on an H100 by benchmarks/gpu_trip.sh")
    report = json.loads(path.read_text())
    assert report["complete"]
    assert {entry["route"] for entry in report["ops"]} == {"capi", "chain", "plugin_v3"}
    assert all(entry["cases"] > 0 and entry["worst_row_error"] <= entry["tolerance"] for entry in report["ops"])
    assert [failure for entry in report["ops"] for failure in entry["failures"]] == []


def test_the_committed_gpu_results_of_mant_have_no_failures() -> None:
    ops = json.loads((ROOT / "benchmarks/results/h100/mant_correctness.json").read_text())["ops"]
    assert {entry["op"] for entry in ops} == {"MANTLinear", "MANTLinearW4A8", "MANTLinearInt8"}
    assert all(entry["cases"] > 0 and entry["worst_row_error"] <= entry["tolerance"] for entry in ops)
    assert [failure for entry in ops for failure in entry["failures"]] == []
