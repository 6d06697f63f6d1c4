"""A plan that is not what its manifest says, or not for this machine, is found out before TensorRT loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.engine import gpu, manifest, plugins
from graphopt.engine import inspect as inspection
from graphopt.engine.build import BuildOptions, build
from graphopt.engine.flavour import Flavour, Installed
from graphopt.engine.inspect import Layer, inspect_plan, require_usable
from graphopt.engine.messages import Messages
from graphopt.errors import EngineError

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("rtx_flavour")]

GPU = gpu.Driver("13.0", (gpu.Gpu("RTX 4090", "8.9", 24 << 30),), None)


@pytest.fixture
def plan(quantize_model: Callable[..., Path], plugin_library: Path, tmp_path: Path) -> Path:
    return build(quantize_model(), tmp_path / "m.plan", BuildOptions(plugins=plugin_library)).plan


def edit(plan: Path, **entries: Any) -> None:
    path = manifest.path_for(plan)
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def problem(plan: Path, library: Path | None = None) -> str:
    report = inspect_plan(plan, library)
    assert report.layers is None
    assert report.layers_missing == "the plan cannot be used as it is"
    (only,) = report.problems
    with pytest.raises(EngineError, match="^" + only.replace("(", r"\(").replace(")", r"\)")):
        require_usable(plan, library)
    return only


def test_a_fresh_plan_has_no_problems(plan: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "query", lambda: gpu.Driver(None, (), "no NVIDIA driver is installed"))
    report = inspect_plan(plan, plugin_library)
    assert report.problems == ()
    assert report.manifest == manifest.read(plan) == require_usable(plan, plugin_library)
    assert report.layers_missing == "layers of the engine can be listed on its GPU only: no NVIDIA driver is installed"
    assert json.loads(json.dumps(report.to_dict()))["manifest"]["plugin_layers"] == 1


def test_truncated_plan(plan: Path, plugin_library: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "truncated or replaced; build it again" in problem(plan, plugin_library)


def test_edited_plan(plan: Path, plugin_library: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    assert "is not the file its manifest describes: edited or replaced" in problem(plan, plugin_library)


def test_plan_of_another_version(plan: Path, plugin_library: Path) -> None:
    edit(plan, tensorrt="1.0.0")
    assert "was built by TensorRT-RTX 1.0.0, installed is 1." in problem(plan, plugin_library)


def test_plan_of_a_flavour_that_is_not_here(plan: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "installed", lambda: ())
    edit(plan, flavour="tensorrt", tensorrt="10.14.1")
    assert problem(plan, plugin_library) == "the plan needs TensorRT 10.14.1, which is not installed"


def test_plan_of_another_gpu(plan: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = gpu.Gpu("NVIDIA H100", "9.0", 80 << 30)
    monkeypatch.setattr(gpu, "query", lambda: gpu.Driver("13.0", (here,), None))
    monkeypatch.setattr(inspection, "installed", lambda: (Installed("tensorrt", "10.14.1", None),))
    edit(plan, flavour="tensorrt", tensorrt="10.14.1", targets=["8.0"])
    assert problem(plan, plugin_library) == (
        "the plan was built for compute capability 8.0, the GPU here (NVIDIA H100) has 9.0; "
        "build it again on this machine"
    )


def test_plan_of_another_plugin_library(plan: Path, plugin_library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    shutil.copy(plugin_library, other)
    with other.open("ab") as f:
        f.write(b"\0")
    assert f"was built with another plugin library than {other}" in problem(plan, other)


def test_missing_plugin_library(plan: Path, tmp_path: Path) -> None:
    assert "gone.so does not exist" in problem(plan, tmp_path / "gone.so")


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.plan does not exist or is not a file"):
        inspect_plan(tmp_path / "gone.plan")


class FakeRuntime:
    """A runtime on a GPU machine, as far as listing layers uses it."""

    answer: str | None = None

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, data: bytes) -> SimpleNamespace | None:
        assert data
        if self.answer is None:
            return None
        inspector = SimpleNamespace(get_engine_information=lambda form: self.answer)
        return SimpleNamespace(create_engine_inspector=lambda: inspector)


@pytest.mark.parametrize(
    ("answer", "layers"),
    [
        (
            {"Layers": [{"Name": "quantize_0", "LayerType": "PluginV3"}, {"Name": "r", "LayerType": "Reformat"}]},
            (Layer("quantize_0", "PluginV3"), Layer("r", "Reformat")),
        ),
        ({"Layers": ["quantize_0"]}, (Layer("quantize_0", ""),)),
        (None, None),
    ],
)
def test_layers_on_a_gpu(
    answer: Any, layers: tuple[Layer, ...] | None, plan: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = type("Runtime", (FakeRuntime,), {"answer": None if answer is None else json.dumps(answer)})
    trt = SimpleNamespace(Runtime=runtime, LayerInformationFormat=SimpleNamespace(JSON=1))
    monkeypatch.setattr(gpu, "query", lambda: GPU)
    monkeypatch.setattr(inspection, "select", lambda name: Flavour(name, "1.7.1", trt, Messages(), None))
    monkeypatch.setattr(plugins, "load", lambda path, flavour: None)
    report = inspect_plan(plan, plugin_library)
    assert report.layers == layers
    if layers is None:
        assert report.layers_missing == "TensorRT-RTX 1.7.1 cannot load the plan here: it gave no reason"
