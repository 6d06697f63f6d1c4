"""TensorRT-RTX, which builds without a GPU, takes the linears of M-ANT as plugins, in every type."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.op import OpSpec, attach_bodies
from graphopt.engine.build import BuildOptions, build
from graphopt.ir import Model, save
from graphopt.ir.weights import onnx_dtype
from graphopt.passes.mant.ops import LINEAR, LINEAR_INT8, LINEAR_W4A8, OPS

pytestmark = pytest.mark.rtx

K, N = 150, 24  # of the ops' examples


def _node(model: Model, spec: OpSpec, x: list[gs.Tensor], rng: np.random.Generator, dtype: Any) -> gs.Node:
    stored = spec.examples(rng, dtype)[len(x) :]
    constants = [model.store.put(f"{spec.name}_{i}", np.nan_to_num(a)) for i, a in enumerate(stored)]
    return spec.node(spec.name, [*x, *constants], [gs.Variable(f"{spec.name}_y", onnx_dtype(dtype), ["tokens", N])])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_linears_build_as_plugins(dtype: Any, rng: np.random.Generator, tmp_path: Path, library: Path) -> None:
    kind = np.dtype(dtype)
    x = gs.Variable("x", onnx_dtype(kind), ["tokens", K])
    xq, sx = gs.Variable("xq", np.int8, ["tokens", K]), gs.Variable("sx", np.float32, ["tokens", 3])
    model = Model(gs.Graph([], [x, xq, sx], [], opset=20))
    nodes = [_node(model, LINEAR, [x], rng, kind)]
    nodes += [_node(model, spec, [xq, sx], rng, kind) for spec in (LINEAR_W4A8, LINEAR_INT8)]
    model.graph.nodes.extend(nodes)
    model.graph.outputs = [node.outputs[0] for node in nodes]
    attach_bodies(model, OPS)
    (path, *_) = save(model, tmp_path / "m.onnx")
    inputs = {"x": K, "xq": K, "sx": 3}
    shapes = {
        f"{which}_shapes": (",".join(f"{name}:{m}x{size}" for name, size in inputs.items()),)
        for which, m in (("min", 1), ("opt", 8), ("max", 64))
    }
    result = build(path, tmp_path / "m.plan", BuildOptions(flavour="rtx", plugins=library, **shapes))
    assert result.manifest.plugin_layers == 3
    assert [t.shape for t in result.manifest.outputs] == [(-1, N)] * 3
