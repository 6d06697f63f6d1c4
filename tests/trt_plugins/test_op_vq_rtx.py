"""TensorRT-RTX, which builds without a GPU, takes the ops of vector-quantized weights as plugins, in every type."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.engine.build import BuildOptions, build
from graphopt.passes.vq.hadamard_ops import FUSED, HADAMARD
from graphopt.passes.vq.ops import LINEAR, LINEAR_E8

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}

pytestmark = pytest.mark.rtx


@pytest.mark.parametrize("dtype", TYPES)
def test_vq_ops_build_as_plugins(dtype: str, rng: np.random.Generator, tmp_path: Path, library: Path) -> None:
    nodes, weights, outputs = [], [], []
    widths = {}
    for spec in (LINEAR, LINEAR_E8, HADAMARD, *FUSED.values()):
        operands = spec.examples(rng, np.dtype(getattr(ml_dtypes, dtype, dtype)))
        x, names = operands[0], []
        for param, array in zip(spec.inputs, operands, strict=True):
            constant = param.name not in ("x", "gate", "up", "residual")
            names.append(f"{spec.name}.{param.name}" if constant else "x")
            if constant:
                weights.append(numpy_helper.from_array(array, names[-1]))
        attributes = {a.name: a.default for a in spec.attributes} | spec.example_attributes
        made = [f"{spec.name}.{p.name}" for p in spec.outputs]
        where = {"domain": "graphopt", "plugin_namespace": "graphopt", "plugin_version": "1"}
        nodes.append(helper.make_node(spec.name, names, made, name=spec.name, **where, **attributes))
        outputs.append(helper.make_tensor_value_info(made[0], TYPES[dtype], None))
        widths[made[0]] = 24 if spec.family == "Linear" else 96
    channels = x.shape[-1]
    value = helper.make_tensor_value_info("x", TYPES[dtype], ["batch", "length", channels])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("graphopt", 1)]
    graph = helper.make_graph(nodes, "ops", [value], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "ops.onnx")
    shapes = [(f"x:{batch}x{length}x{channels}",) for batch, length in ((1, 1), (2, 8), (4, 32))]
    options = BuildOptions(
        flavour="rtx", plugins=library, min_shapes=shapes[0], opt_shapes=shapes[1], max_shapes=shapes[2]
    )
    manifest = build(tmp_path / "ops.onnx", tmp_path / "ops.plan", options).manifest
    assert manifest.plugin_layers == len(nodes)
    assert {t.name: t.shape for t in manifest.outputs} == {name: (-1, -1, n) for name, n in widths.items()}
