"""TensorRT-RTX, which builds without a GPU, takes every op of ours as a plugin, in every type, with dynamic shapes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.core.op import OpSpec, attach_bodies
from graphopt.engine.build import BuildOptions, build
from graphopt.ir import save
from graphopt.numerics.packing import pack_int4
from graphopt.passes.mixq.config import MixQConfig
from graphopt.passes.mixq.ops import LINEAR, OPS
from tests.passes.mixq.test_lower import Block

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
K, N, CAPACITY = 64, 48, 16
PACKED = K // 2  # bytes of a row of 4-bit codes

pytestmark = pytest.mark.rtx


def _constant(rng: np.random.Generator, name: str, dtype: np.dtype) -> np.ndarray:
    indices = np.full(CAPACITY, -1, np.int32)
    indices[:3] = 3, 17, 40
    codes = rng.integers(-127, 128, (N, K)).astype(np.int8)
    codes[:, indices[:3]] = 0
    return {
        "idx": lambda: indices,
        "set": lambda: indices,
        "gamma": lambda: rng.uniform(0.5, 1.5, K).astype(dtype),
        "beta": lambda: rng.standard_normal(K).astype(dtype),
        "wq": lambda: codes,
        "wq4": lambda: pack_int4(np.clip(codes, -7, 7)),
        "sg": lambda: rng.integers(1, 19, (1, N)).astype(np.int8),
        "sw": lambda: rng.uniform(1e-3, 1e-2, N).astype(np.float32),
        "wo": lambda: rng.standard_normal((N, CAPACITY)).astype(dtype),
        "bias": lambda: rng.standard_normal(N).astype(dtype),
    }[name]()


class _Model:
    """One model with a node per op: every input that is not a constant is a graph input of dynamic batch and length."""

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self.rng, self.dtype = rng, np.dtype(getattr(ml_dtypes, dtype, dtype))
        self.elem = TYPES[dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []

    def _value(self, name: str, elem: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, elem, shape)

    def _operand(self, node: str, name: str) -> str:
        shapes: dict[str, tuple[int, int]] = {
            "xq": (TensorProto.INT8, K),
            "xq4": (TensorProto.INT8, PACKED),
            "sx": (TensorProto.FLOAT, 1),
            "xo": (self.elem, CAPACITY),
            "gate_up": (self.elem, 2 * K),
        }
        unique = f"{node}.{name}"
        if name == "residual" and "Linear" in node:
            self.inputs.setdefault("shortcut", self._value("shortcut", self.elem, ["batch", "length", N]))
            return "shortcut"
        if name in ("x", "residual", "gate", "up"):
            self.inputs.setdefault(name, self._value(name, self.elem, ["batch", "length", K]))
            return name
        if name in shapes:
            elem, last = shapes[name]
            self.inputs.setdefault(name, self._value(name, elem, ["batch", "length", last]))
            return name
        self.weights.append(numpy_helper.from_array(_constant(self.rng, name, self.dtype), unique))
        return unique

    def add(self, spec: OpSpec, **attributes: float) -> list[str]:
        node = f"{spec.name}_{len(self.nodes)}"
        emitted = [p.name for p in spec.outputs]
        outputs = [f"{node}.{name}" for name in emitted]
        attributes = {a.name: a.default for a in spec.attributes} | {"capacity": CAPACITY} | attributes
        attributes = {a.name: attributes[a.name] for a in spec.attributes}
        self.nodes.append(
            helper.make_node(
                spec.name,
                [self._operand(node, p.name) for p in spec.inputs],
                outputs,
                name=node,
                domain="graphopt",
                plugin_namespace="graphopt",
                plugin_version="1",
                **attributes,
            )
        )
        elems = {"sx": TensorProto.FLOAT, "set": TensorProto.INT32} | dict.fromkeys(("xq", "xq4"), TensorProto.INT8)
        for name, output in zip(emitted, outputs, strict=True):
            if attributes.get(f"emit_{name}", 1):
                self.outputs.append(self._value(output, elems.get(name, self.elem), None))
        return outputs

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, "ops", list(self.inputs.values()), self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("graphopt", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
        return path


def _shapes(model: _Model, batch: int, length: int) -> tuple[str, ...]:
    last = {"sx": 1, "xo": CAPACITY, "xq4": PACKED, "gate_up": 2 * K, "shortcut": N}
    return (",".join(f"{name}:{batch}x{length}x{last.get(name, K)}" for name in model.inputs),)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_op_builds_as_a_plugin(dtype: str, rng: np.random.Generator, tmp_path: Path, library: Path) -> None:
    model = _Model(rng, dtype)
    for spec in (op for op in OPS if op.plugin):
        flags = [a.name for a in spec.attributes if a.name.startswith("emit_")]
        model.add(spec, **dict.fromkeys(flags, 0))
        if flags:
            model.add(spec, **dict.fromkeys(flags, 1))
    options = BuildOptions(
        flavour="rtx",
        plugins=library,
        min_shapes=_shapes(model, 1, 1),
        opt_shapes=_shapes(model, 2, 8),
        max_shapes=_shapes(model, 4, 32),
    )
    result = build(model.save(tmp_path / "ops.onnx"), tmp_path / "ops.plan", options)
    assert result.manifest.plugin_layers == len(model.nodes) == 87
    activation = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}[dtype]
    for tensor in result.manifest.outputs:
        operand = tensor.name.rsplit(".", 1)[1]
        if operand == "set":
            assert (tensor.dtype, tensor.shape) == ("INT32", (CAPACITY,))
            continue
        own = {"sx": 1, "xo": CAPACITY, "xq4": PACKED, "y": N if tensor.name.startswith("MixQLinear") else K}
        last = own.get(operand, K)
        assert tensor.dtype == {"xq": "INT8", "xq4": "INT8", "sx": "FLOAT"}.get(operand, activation), tensor.name
        assert tensor.shape == (-1, -1, last), tensor.name


def test_a_norm_feeds_a_linear(rng: np.random.Generator, tmp_path: Path, library: Path) -> None:
    model = _Model(rng, "float16")
    spec = next(op for op in OPS if op.name == "MixQRMSNorm")
    xq, sx, xo, _ = model.add(spec, emit_y=0)
    model.outputs.clear()
    model.add(LINEAR)
    linear = model.nodes[-1]
    linear.input[0], linear.input[1], linear.input[2] = xq, sx, xo
    model.inputs = {"x": model.inputs["x"]}
    options = BuildOptions(
        flavour="rtx",
        plugins=library,
        min_shapes=_shapes(model, 1, 1),
        opt_shapes=_shapes(model, 1, 16),
        max_shapes=_shapes(model, 1, 64),
    )
    result = build(model.save(tmp_path / "chain.onnx"), tmp_path / "chain.plan", options)
    assert result.manifest.plugin_layers == 2
    assert [tuple(t.shape)[-1] for t in result.manifest.outputs] == [N]


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "online"])
def test_merged_linears_build(bits: str, calibrated: bool, tmp_path: Path, library: Path) -> None:
    """A Split behind q and k; gate and up as halves of what one product makes."""
    block = Block(np.float16)
    block.lower(config=MixQConfig(bits=bits), merge=True, **({} if calibrated else {"statistics": None}))
    attach_bodies(block.model, OPS)
    (path,) = save(block.model, tmp_path / "block.onnx", external_data=False)
    shapes = [tuple(f"{name}:{batch}x{length}x64" for name in "xr") for batch, length in ((1, 1), (2, 8), (4, 32))]
    least, usual, most = ((",".join(shape),) for shape in shapes)
    options = BuildOptions(
        flavour="rtx", plugins=library, native_fallback=True, min_shapes=least, opt_shapes=usual, max_shapes=most
    )
    result = build(path, tmp_path / "block.plan", options)
    assert result.manifest.plugin_layers == sum("plugin_namespace" in n.attrs for n in block.graph.nodes) >= 3
    assert [tuple(t.shape)[-1] for t in result.manifest.outputs] == [96, 96, 64]


def test_the_self_registering_library_registers_with_the_loaded_tensorrt(library: Path) -> None:
    thin = library.with_name("libgraphopt_plugins_autoreg.so")
    program = (
        "import ctypes, tensorrt_rtx as trt\n"
        "registry = trt.get_plugin_registry()\n"
        "before = registry.get_creator('MixQLinear', '1', 'graphopt')\n"
        f"ctypes.CDLL({str(thin)!r})\n"
        "print(before, registry.get_creator('MixQLinear', '1', 'graphopt').name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "MixQLinear"]
    assert done.stderr == ""
