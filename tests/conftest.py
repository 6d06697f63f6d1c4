"""Markers that skip with a reason, seeds, and fixtures that every folder uses."""

import ctypes
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings

from graphopt import ir
from graphopt.engine import nvrtc, plugins
from graphopt.errors import ModelError, PluginError
from graphopt.models import assets

# The same examples on every run; how long one takes says more about the machine than about the code.
settings.register_profile("graphopt", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("graphopt")


def _missing_gpu(_: pytest.Mark) -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine"
    count = ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return None if found else "no CUDA GPU on this machine"


def _missing_rtx(_: pytest.Mark) -> str | None:
    return None if importlib.util.find_spec("tensorrt_rtx") else "tensorrt-rtx is not installed (pip extra 'rtx')"


def _missing_weights(marker: pytest.Mark) -> str | None:
    """Marker arguments are names of assets; without any, all of them are needed."""
    try:
        for name in marker.args or assets.ASSETS:
            assets.path(name)
    except ModelError as e:
        return str(e)
    return None


_REQUIREMENTS = {"gpu": _missing_gpu, "rtx": _missing_rtx, "weights": _missing_weights}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in _REQUIREMENTS.items():
        for marker in item.iter_markers(name):
            if reason := missing(marker):
                pytest.skip(reason)


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """The built plugin library, or a skip that says how to get it."""
    try:
        return plugins.locate()
    except PluginError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def libnvrtc() -> Path:
    """NVRTC of the wheel."""
    found = nvrtc.find()
    if found is None:
        pytest.skip("the wheel nvidia-cuda-nvrtc is not installed")
    return found


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name: fresh values per test, the same ones per run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def to_model(tmp_path: Path) -> Callable[[onnx.ModelProto], ir.Model]:
    """Write a ModelProto to a file and load it."""

    def convert(proto: onnx.ModelProto, name: str = "model.onnx") -> ir.Model:
        path = tmp_path / name
        onnx.save(proto, path)
        return ir.load(path)

    return convert
