"""The C API from Python: what is refused without a GPU, and that names and numbers are those of the C++ side."""

import re
from pathlib import Path

import pytest

from graphopt.bench.capi import PRODUCERS, Library, torch_with_cuda
from graphopt.errors import BenchError

SOURCES = Path(__file__).resolve().parents[3] / "trt_plugins"


@pytest.mark.usefixtures("no_torch")
def test_without_torch() -> None:
    with pytest.raises(BenchError, match="torch, which is not installed here; pip install torch"):
        torch_with_cuda()


@pytest.mark.usefixtures("torch_without_gpu")
def test_torch_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no CUDA GPU"):
        Library(tmp_path / "library.so")


def test_producers_are_numbered_as_in_the_library() -> None:
    params = (SOURCES / "common/producer.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"^  k(\w+) = (\d+),", params, re.MULTILINE)}
    upper = {name.upper(): value for name, value in numbers.items()}
    ours = {name.removeprefix("MixQ").replace("Quantize", "Plain").upper(): i for i, name in enumerate(PRODUCERS)}
    assert ours == upper


def test_argument_counts_are_those_of_the_header() -> None:
    header = re.sub(r"//[^\n]*", "", (SOURCES / "capi.h").read_text())
    source = (SOURCES.parent / "graphopt/bench/capi.py").read_text()
    counts = {
        "graphopt_mixq_quantize": 5 + 5 + 1 + 6,
        "graphopt_mixq_quantize4": 5 + 5 + 1 + 6,
        "graphopt_mixq_linear": 1 + 4 + 9,
        "graphopt_mixq_linear_w4a8": 1 + 5 + 10,
        "graphopt_mixq_linear_w4a4": 1 + 5 + 11,
        "graphopt_mixq_linear_add": 1 + 4 + 10,
        "graphopt_mixq_linear_w4a8_add": 1 + 5 + 11,
        "graphopt_mixq_linear_w4a4_add": 1 + 5 + 12,
    }
    for name, count in counts.items():
        (arguments,) = re.findall(rf"{name}\(([^)]*)\)", header)
        assert len(arguments.split(",")) == count, name
        assert f"self._lib.{name}.argtypes" in source
