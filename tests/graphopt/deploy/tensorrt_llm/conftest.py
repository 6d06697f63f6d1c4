import importlib.util
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
Optimized = Callable[..., Path]


@pytest.fixture(scope="session")
def models() -> types.ModuleType:
    """benchmarks/torch_models.py: what the GPU is given is what is tested here."""
    spec = importlib.util.spec_from_file_location("torch_models", ROOT / "benchmarks" / "torch_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def optimized(models: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Optimized:
    """optimized(scheme, dtype, **sizes) -> an .onnx file with config.json beside it, made once."""
    made: dict[tuple[object, ...], Path] = {}

    def get(scheme: str | Path = "mixq-w8a8", dtype: str = "float32", **sizes: Any) -> Path:
        key = (scheme, dtype, *sorted(sizes.items()))
        if key not in made:
            small = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "head_dim": 16, **sizes}
            folder = tmp_path_factory.mktemp("optimized")
            made[key] = models.write_optimized(folder, replace(models.CONFIG, **small), dtype, scheme)
        return made[key]

    return get


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the plugin library, which nothing here calls."""
    path = tmp_path_factory.mktemp("library") / "libgraphopt_plugins.so"
    path.write_bytes(b"kernels")
    return path
