"""No GPU: what of the benchmarks can be tested without one."""

import sys
import types

import pytest

from graphopt.bench import capi


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes the import fail


@pytest.fixture
def torch_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(capi.importlib, "import_module", lambda name: types.SimpleNamespace(cuda=cuda))
