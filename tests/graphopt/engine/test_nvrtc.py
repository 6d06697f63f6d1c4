"""Which libnvrtc of a wheel the plugin library is told about."""

import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from graphopt.engine import nvrtc


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package `nvidia`, the only one there is."""
    spec = ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "nvidia" else None)
    monkeypatch.delenv(nvrtc.ENVIRONMENT, raising=False)
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_newest_cuda_is_found_and_its_other_libraries_are_not(packages: Path) -> None:
    assert nvrtc.find() is None
    put(packages / "cu13/lib/libnvrtc-builtins.so.13.0")
    put(packages / "cu13/lib/libnvrtc.alt.so.13")
    assert nvrtc.find() is None
    older = put(packages / "cuda_nvrtc/lib/libnvrtc.so.12")
    assert nvrtc.find() == older
    newer = put(packages / "cu13/lib/libnvrtc.so.13")
    assert nvrtc.find() == newer


def test_what_the_user_names_stays(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.offer()
    assert nvrtc.ENVIRONMENT not in os.environ
    found = put(packages / "cu13/lib/libnvrtc.so.13")
    monkeypatch.setenv(nvrtc.ENVIRONMENT, "/mine.so")
    nvrtc.offer()
    assert os.environ[nvrtc.ENVIRONMENT] == "/mine.so"
    monkeypatch.setenv(nvrtc.ENVIRONMENT, "")
    nvrtc.offer()
    assert os.environ[nvrtc.ENVIRONMENT] == str(found)
