"""The adapter for TensorRT 8.6 compiles against its headers, which TENSORRT8_INCLUDE_DIR names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "trt_plugins"


@pytest.fixture(scope="module")
def include_flags() -> list[str]:
    headers = os.environ.get("TENSORRT8_INCLUDE_DIR", "")
    if not (Path(headers) / "NvInferRuntime.h").is_file():
        pytest.skip("TENSORRT8_INCLUDE_DIR does not name TensorRT 8.6's headers")
    nvcc = subprocess.run(
        [SOURCES.parent / "cmake" / "find_nvcc.sh"], capture_output=True, text=True, check=False
    ).stdout.strip()  # fmt: skip
    # An nvcc on the PATH may be a script that stands elsewhere.
    toolkits = [Path(nvcc).resolve().parents[1], Path("/usr/local/cuda")] if nvcc else []
    cuda = next((t / "include" for t in toolkits if (t / "include" / "cuda_runtime_api.h").is_file()), None)
    if cuda is None or shutil.which("g++") is None:
        pytest.skip("no CUDA headers or no g++ was found")
    return ["-isystem", headers, "-isystem", str(cuda), "-I", str(SOURCES)]


@pytest.mark.parametrize("source", ["common/plugin_v2.cpp", "registry_v2.cpp"])
def test_it_compiles_without_warnings(include_flags: list[str], source: str) -> None:
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-Werror", "-fsyntax-only"]
    done = subprocess.run(
        ["g++", *flags, *include_flags, str(SOURCES / source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
