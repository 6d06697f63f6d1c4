"""Small models and libraries for the engine tests, and skips that say why."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.engine.flavour import Flavour, select
from graphopt.passes.mixq.ops import QUANTIZE

OPSET = 20
K = 64

SaveModel = Callable[..., Path]
CompileLibrary = Callable[..., Path]


@pytest.fixture(scope="session")
def rtx_flavour() -> Flavour:
    """TensorRT-RTX, or a skip that says how to get it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx")
    return select("rtx")


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Write a model of the given nodes, float32 (m, K) -> whatever, and return its path."""

    def save(
        nodes: Sequence[onnx.NodeProto],
        *,
        inputs: Sequence[Any] = (helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K]),),
        outputs: Sequence[Any] = (helper.make_tensor_value_info("y", TensorProto.FLOAT, None),),
        weights: dict[str, np.ndarray] | None = None,
        functions: Sequence[onnx.FunctionProto] = (),
        domains: Sequence[str] = (),
        name: str = "model.onnx",
        external: bool = False,
    ) -> Path:
        initializers = [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()]
        graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), initializers)
        imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))
        path = tmp_path / name
        onnx.save(model, path, save_as_external_data=external, location=f"{name}.data", size_threshold=0)
        return path

    return save


@pytest.fixture
def mlp(save_model: SaveModel) -> Path:
    """y = relu(x W), with one outlier channel in W; dynamic rows."""
    w = np.random.default_rng(7).standard_normal((K, 32)).astype(np.float32)
    w[5] *= 40
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    return save_model(nodes, weights={"w": w}, name="mlp.onnx")


@pytest.fixture
def quantize_model(save_model: SaveModel) -> Callable[..., Path]:
    """A model of ``count`` MixQQuantize nodes on one input, with the body where asked."""

    def make(*, count: int = 1, body: bool = True, external: bool = False) -> Path:
        nodes, outputs = [], []
        for i in range(count):
            results = [f"{part}_{i}" for part in ("xq", "sx", "xo")]
            nodes.append(
                helper.make_node(
                    "MixQQuantize", ["x", "idx"], results, name=f"quantize_{i}", domain="graphopt",
                    plugin_version="1", plugin_namespace="graphopt",
                )
            )  # fmt: skip
            types = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.FLOAT16)
            outputs += [helper.make_tensor_value_info(r, t, None) for r, t in zip(results, types, strict=True)]
        return save_model(
            nodes,
            inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["m", K])],
            outputs=outputs,
            weights={"idx": np.array([3, 17, 40] + [-1] * 13, np.int32)},
            functions=[QUANTIZE.function(OPSET)] if body else [],
            domains=["graphopt"],
            name="quantize.onnx",
            external=external,
        )

    return make


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory: pytest.TempPathFactory) -> CompileLibrary:
    """Compile C source into a shared library."""

    def compile_c(source: str, name: str = "lib.so", flags: Sequence[str] = ()) -> Path:
        path = tmp_path_factory.mktemp("library") / name
        command = ["gcc", "-shared", "-fPIC", "-o", str(path), "-x", "c", "-", "-x", "none", *flags]
        subprocess.run(command, input=source, text=True, check=True)
        return path

    return compile_c


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a fresh process: for what a process can do once only, or what may end it."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False,
        )  # fmt: skip

    return run
