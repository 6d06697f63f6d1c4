"""TensorRT-RTX, which builds without a GPU, takes norms and activations by themselves as plugins, in every type."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.engine.build import BuildOptions, build
from graphopt.passes import SCHEMES
from graphopt.passes.fused.ops import FUSED
from tests.passes.kvcache.decoders import EXPORTERS

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}

pytestmark = pytest.mark.rtx


@pytest.mark.parametrize("dtype", TYPES)
def test_every_op_builds_as_a_plugin(dtype: str, rng: np.random.Generator, tmp_path: Path, library: Path) -> None:
    nodes, constants, outputs = [], [], []
    for spec in FUSED.values():
        operands = spec.examples(rng, np.dtype(getattr(ml_dtypes, dtype, dtype)))
        names = []
        for param, array in zip(spec.inputs, operands, strict=True):
            constant = param.name in ("gamma", "beta")
            names.append(f"{spec.name}.{param.name}" if constant else "x")
            if constant:
                constants.append(numpy_helper.from_array(array, names[-1]))
        attributes = {a.name: 1 if a.name == "emit_sum" else a.default for a in spec.attributes}
        made = [f"{spec.name}.{p.name}" for p in spec.outputs]
        where = {"domain": "graphopt", "plugin_namespace": "graphopt", "plugin_version": "1"}
        nodes.append(helper.make_node(spec.name, names, made, name=spec.name, **where, **attributes))
        outputs += [helper.make_tensor_value_info(name, TYPES[dtype], None) for name in made]
    channels = operands[0].shape[-1]
    value = helper.make_tensor_value_info("x", TYPES[dtype], ["batch", "length", channels])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("graphopt", 1)]
    graph = helper.make_graph(nodes, "ops", [value], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "ops.onnx")
    shapes = [(f"x:{batch}x{length}x{channels}",) for batch, length in ((1, 1), (2, 8), (4, 32))]
    options = BuildOptions(
        flavour="rtx", plugins=library, min_shapes=shapes[0], opt_shapes=shapes[1], max_shapes=shapes[2]
    )
    manifest = build(tmp_path / "ops.onnx", tmp_path / "ops.plan", options).manifest
    assert manifest.plugin_layers == len(nodes)
    assert {t.name: t.shape for t in manifest.outputs} == {o.name: (-1, -1, channels) for o in outputs}


def test_a_decoder_builds_with_them(tmp_path: Path, library: Path) -> None:
    model = ir.load(EXPORTERS / "llama_dynamo18_fp16.onnx")
    compile.optimize(model, Recipe.preset("mant-w4a16", SCHEMES))
    ours = [n.op for n in model.graph.nodes if n.domain == "graphopt"]
    assert sum(op.startswith("Fused") for op in ours) == 7
    ir.save(model, tmp_path / "m.onnx")
    lengths = {"min": 1, "opt": 4, "max": 8}
    shapes = {
        f"{which}_shapes": (",".join(f"{t.name}:1x{n}" for t in model.graph.inputs),) for which, n in lengths.items()
    }
    options = BuildOptions(flavour="rtx", plugins=library, **shapes)
    assert build(tmp_path / "m.onnx", tmp_path / "m.plan", options).manifest.plugin_layers == len(ours)
