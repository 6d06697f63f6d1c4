"""TensorRT-RTX builds the M-ANT ops: their bodies as plain layers, the cache as a plugin too."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.op import OpSpec, attach_bodies
from graphopt.engine import plugins
from graphopt.engine.build import BuildOptions, build
from graphopt.ir import Model, save
from graphopt.ir.weights import onnx_dtype
from graphopt.passes.mant.cache_numerics import State
from graphopt.passes.mant.cache_ops import CACHED_ATTENTION
from graphopt.passes.mant.ops import LINEAR, LINEAR_INT8, LINEAR_W4A8, OPS, QUANTIZE

pytestmark = pytest.mark.rtx


def _linear(spec: OpSpec, name: str, x: list[gs.Variable], rng: np.random.Generator, dtype: Any) -> gs.Node:
    """Return a linear on ``x`` with the weights of the op's example."""
    stored = spec.examples(rng, dtype)[len(x) :]
    constants = [gs.Constant(f"{name}_{i}", np.nan_to_num(a)) for i, a in enumerate(stored)]
    return spec.node(name, [*x, *constants], [gs.Variable(f"{name}_y", onnx_dtype(dtype), ["tokens", 24])])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_linears(dtype: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    """Each twice, because a function with QuantizeLinear cannot be imported twice."""
    x = gs.Variable("x", onnx_dtype(np.dtype(dtype)), ["tokens", 150])
    nodes = []
    for group, scales in ((64, 3), (160, 1)):
        quantized = [
            gs.Variable(f"xq{group}", np.int8, ["tokens", 150]),
            gs.Variable(f"sx{group}", np.float32, ["tokens", scales]),
        ]
        nodes.append(QUANTIZE.node(f"quantize{group}", [x], quantized, group=group))
        for spec in (LINEAR_W4A8, LINEAR_INT8):
            nodes.append(_linear(spec, f"{spec.name}{group}", quantized, rng, np.dtype(dtype)))
        nodes.append(_linear(LINEAR, f"float{group}", [x], rng, np.dtype(dtype)))
    outputs = [n.outputs[0] for n in nodes if "Linear" in n.op]
    model = Model(gs.Graph(nodes, [x], outputs, opset=18))
    attach_bodies(model, OPS)
    (path, *_) = save(model, tmp_path / "m.onnx")
    shapes = {f"{which}_shapes": (f"x:{n}x150",) for which, n in (("min", 1), ("opt", 8), ("max", 16))}
    result = build(path, tmp_path / "m.plan", BuildOptions(flavour="rtx", native_fallback=True, **shapes))
    assert [t.shape for t in result.manifest.outputs] == [(-1, 24)] * 6


@pytest.mark.parametrize("as_plugin", [False, True], ids=["body", "plugin"])
def test_cached_attention(
    as_plugin: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_plugin:
        request.getfixturevalue("plugin_library")
    else:
        monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "gone.so"))
    heads, kv_heads, size, group, capacity = 6, 2, 64, 64, 128
    shapes: dict[str, tuple[Any, list[Any]]] = {
        "q": (np.float16, ["b", "s", heads, size]),
        **dict.fromkeys("kv", (np.float16, ["b", "s", kv_heads, size])),
        **dict.fromkeys(("cos", "sin"), (np.float16, ["b", "s", size])),
        "k_center": (np.float16, [kv_heads, size]),
    }
    state = State.empty(1, kv_heads, capacity, size, group, np.float16).arrays()
    names = [p.name for p in CACHED_ATTENTION.inputs if p.name.startswith("past")]
    shapes |= {n: (a.dtype, ["b", *a.shape[1:]]) for n, a in zip(names, state, strict=True)}
    inputs = [gs.Variable(n, onnx_dtype(np.dtype(kind)), shape) for n, (kind, shape) in shapes.items()]
    inputs.append(gs.Variable("start", np.int32, ["b"]))
    outputs = [gs.Variable("y", np.float16, shapes["q"][1])]
    outputs += [gs.Variable(n.replace("past", "present"), onnx_dtype(shapes[n][0]), shapes[n][1]) for n in names]
    model = Model(gs.Graph([CACHED_ATTENTION.node("att", inputs, outputs)], inputs, outputs, opset=18))
    attach_bodies(model, (CACHED_ATTENTION,))
    (path, *_) = save(model, tmp_path / "m.onnx")

    def profile(batch: int, seq: int) -> tuple[str, ...]:
        sizes = {"b": batch, "s": seq}
        return (",".join(f"{t.name}:" + "x".join(str(sizes.get(d, d)) for d in t.shape) for t in inputs),)

    options = BuildOptions(
        flavour="rtx",
        native_fallback=not as_plugin,
        min_shapes=profile(1, 1),
        opt_shapes=profile(1, 1),
        max_shapes=profile(2, 4),
    )
    result = build(path, tmp_path / "m.plan", options)
    assert len(result.manifest.outputs) == 8
    assert result.manifest.plugin_layers == int(as_plugin)
