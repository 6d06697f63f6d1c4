"""Every op of ours that wants a plugin builds into a real engine both ways: as its plugin, and as its body."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from graphopt.core.op import OpSpec
from graphopt.engine import plugins
from graphopt.engine.build import BuildOptions, build
from graphopt.ir.weights import onnx_dtype
from graphopt.passes import mixq, vq
from graphopt.passes.vq import cache_ops

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("rtx_flavour")]

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
OPSET = 20
OPS = (*mixq.OPS, *vq.OPS, *cache_ops.OPS)
#: Inputs whose first axis is dynamic, tokens or sequences; the others are weights.
ROWS = {"x", "residual", "gate", "up", "xq", "sx", "xo", "q", "k", "v", "cos", "sin", "past_k", "past_v", "start"}
CALLS = 2


@pytest.fixture(params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def model(request: pytest.FixtureRequest, op: OpSpec, save_model: Callable[..., Path]) -> Path:
    """`CALLS` nodes of ``op`` on the same inputs, any number of tokens."""
    arrays = op.examples(np.random.default_rng(11), request.param)
    attributes = {a.name: a.default for a in op.attributes} | op.example_attributes
    results = op.evaluate(*arrays, **attributes)
    named = dict(zip((p.name for p in op.inputs), arrays, strict=True))
    nodes, outputs = [], []
    plugin = {"plugin_version": "1", "plugin_namespace": "graphopt"} if op.plugin else {}
    for call in range(CALLS):
        names = [f"{p.name}_{call}" for p in op.outputs]
        nodes.append(
            helper.make_node(
                op.name, list(named), names, name=f"{op.name}_{call}", domain="graphopt",
                **plugin, **attributes,
            )
        )  # fmt: skip
        # What is not emitted has another shape as a plugin's output than as the body's, and is no output of a model.
        emitted = [o.name for o in op.outputs if attributes.get(f"emit_{o.name}", 1)]
        outputs += [
            helper.make_tensor_value_info(name, onnx_dtype(value.dtype), None)
            for param, name, value in zip(op.outputs, names, results, strict=True)
            if param.name in emitted
        ]
    return save_model(
        nodes,
        inputs=[
            helper.make_tensor_value_info(name, onnx_dtype(value.dtype), ["tokens", *value.shape[1:]])
            for name, value in named.items()
            if name in ROWS
        ],
        outputs=outputs,
        weights={name: value for name, value in named.items() if name not in ROWS},
        functions=[op.function(OPSET)],
        domains=["graphopt"],
    )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_builds_as_plugin_and_as_body(
    op: OpSpec, model: Path, plugin_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_plugin = build(model, tmp_path / "m.plan", BuildOptions(plugins=plugin_library)).manifest
    assert as_plugin.plugin_layers == (CALLS if op.plugin else 0)
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "gone.so"))
    as_body = build(model, tmp_path / "m.plan", BuildOptions(native_fallback=True)).manifest
    assert as_body.plugin_layers == 0
    assert as_body.custom_ops == ({op.name: CALLS} if op.plugin else {})
    described = [[(t.name, t.dtype) for t in m.outputs] for m in (as_plugin, as_body)]
    assert described[0] == described[1]
