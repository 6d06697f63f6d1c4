"""The diagnosis: complete, honest about what is broken, and with advice for each of it."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from graphopt.engine import doctor, gpu, plugins, rtx
from graphopt.engine.doctor import Check, Status, examine
from graphopt.engine.flavour import Flavour, Installed
from graphopt.errors import EngineError
from graphopt.passes import OPS


def checks(**arguments: object) -> dict[str, Check]:
    diagnosis = examine(**arguments)
    assert all(c.advice for c in diagnosis.checks if c.status is not Status.OK), "a problem without advice"
    assert diagnosis.healthy == all(c.status is not Status.ERROR for c in diagnosis.checks)
    return {c.name: c for c in diagnosis.checks}


@pytest.mark.rtx
def test_a_complete_installation_is_healthy(rtx_flavour: Flavour, plugin_library: Path) -> None:
    diagnosis = examine("rtx", plugin_library)
    assert diagnosis.healthy, [c for c in diagnosis.checks if c.status is Status.ERROR]
    found = {c.name: c for c in diagnosis.checks}
    assert found["TensorRT in use"].found == str(rtx_flavour)
    assert str(rtx.loaded_library()) in found[rtx.SONAME].found
    assert str(plugin_library) in found["plugin library"].found
    assert "MixQQuantize" in found["plugins"].found
    assert found["numpy"].found == importlib.metadata.version("numpy")
    assert json.loads(json.dumps(diagnosis.to_dict()))["healthy"] is True


@pytest.mark.rtx
def test_a_library_has_every_plugin_of_the_catalogue_or_is_to_be_built_again(
    rtx_flavour: Flavour, plugin_library: Path
) -> None:
    ops = [op.name for op in OPS if op.plugin]
    assert checks(flavour="rtx", plugin_library=plugin_library, ops=ops)["plugins"].status is Status.OK
    older = checks(flavour="rtx", plugin_library=plugin_library, ops=[*ops, "MixQTomorrow"])["plugins"]
    assert older.status is Status.ERROR
    assert "lacks MixQTomorrow" in str(older.advice)


@pytest.mark.rtx
def test_a_missing_plugin_library_is_an_error(rtx_flavour: Flavour, tmp_path: Path) -> None:
    check = checks(flavour="rtx", plugin_library=tmp_path / "gone.so")["plugin library"]
    assert check.status is Status.ERROR
    assert "gone.so does not exist" in str(check.advice)


@pytest.mark.rtx
def test_a_name_that_cannot_be_made_loadable_is_an_error_with_the_cure(
    rtx_flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> Flavour:
        raise EngineError("create the link by hand: ln -s a b")

    monkeypatch.setattr(doctor, "select", refuse)
    check = checks(flavour="rtx")["TensorRT in use"]
    assert (check.status, check.advice) == (Status.ERROR, "create the link by hand: ln -s a b")


def test_a_broken_flavour_counts_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: (Installed("tensorrt", None, "libnvinfer.so.10 is missing"),))

    def refuse(name: str | None) -> Flavour:
        raise EngineError("nothing usable; pip install tensorrt-rtx")

    monkeypatch.setattr(doctor, "select", refuse)
    assert checks()["flavour tensorrt"].status is Status.NOTE
    assert checks(flavour="tensorrt")["flavour tensorrt"].status is Status.ERROR


def test_missing_packages_weigh_what_they_are_needed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnx", "onnxruntime"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = checks()
    assert (found["onnx"].status, found["onnx"].advice) == (Status.ERROR, "pip install onnx")
    assert found["onnxruntime"].status is Status.NOTE
    assert "pip install onnxruntime" in str(found["onnxruntime"].advice)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = gpu.Driver("13.0", (gpu.Gpu("H100", "9.0", 80 << 30),), None)
    monkeypatch.setattr(gpu, "query", lambda: driver)
    monkeypatch.setattr(plugins, "locate", lambda explicit, flavour=None: Path("/nonexistent"))
    assert checks()["GPU"].found == "H100, compute capability 9.0, 80 GiB, driver for CUDA 13.0"


def test_an_old_python_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert checks()["Python"].advice == "use Python 3.10 or newer"


@pytest.mark.parametrize("variable", ["TENSORRT_INCLUDE_DIR", "TensorRT_ROOT"])
def test_headers_are_found_and_their_version_read(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_HEADER_FOLDERS", ())
    folder = tmp_path if variable == "TENSORRT_INCLUDE_DIR" else tmp_path / "include"
    folder.mkdir(exist_ok=True)
    assert checks()["TensorRT headers"].found == "not installed"
    text = "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 14\n#define TRT_PATCH_ENTERPRISE 1\n"
    (folder / "NvInferVersion.h").write_text(text)
    monkeypatch.setenv(variable, str(tmp_path))
    assert checks()["TensorRT headers"].found == f"{folder}, version 10.14.1"
    (folder / "NvInferVersion.h").write_text(
        "#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 6\n"
    )
    assert checks()["TensorRT headers"].found == f"{folder}, version 8.6"


def test_nvcc_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks()["nvcc"].status is Status.NOTE
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    compiler.chmod(0o755)
    assert checks()["nvcc"].found == f"{compiler}, CUDA 13.0"
