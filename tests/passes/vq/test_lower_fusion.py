"""Transforms take over what makes their input: which op comes out, what it emits, and that the model says the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.producers import PRODUCERS
from graphopt.core.report import Report
from graphopt.passes import OPS
from graphopt.passes.canonicalize import ops
from graphopt.passes.vq import lower
from graphopt.passes.vq.config import VQConfig
from graphopt.passes.vq.hadamard_ops import FUSED
from graphopt.passes.vq.lower import SCHEME
from tests.support.arrays import activations, weight
from tests.support.runtime import run_ort

K = 40
CANONICAL = {spec.name: spec for spec in (ops.RMS_NORM, ops.LAYER_NORM, *ops.GATED.values(), *ops.GELUS.values())}
E8 = VQConfig.model_validate({"codebook": "e8", "rounds": 0})


def tensor(name: str, size: int = K) -> gs.Variable:
    return gs.Variable(name, np.float32, ["batch", "tokens", size])


def block(name: str, rng: np.random.Generator) -> ir.Model:
    """A producer, and the linears 'a' and 'b' that read it."""
    spec = CANONICAL[name.removeprefix("Add")]
    inputs, nodes = [tensor("x")], []
    first: gs.Tensor = inputs[0]
    if name.startswith("Add"):
        inputs.append(tensor("r"))
        first = tensor("s")
        nodes.append(gs.Node("Add", "add", inputs=list(inputs), outputs=[first]))
    operands: list[gs.Tensor] = [first]
    if name.startswith("Gated"):
        inputs.append(tensor("u"))
        operands.append(inputs[1])
    vectors = [p.name for p in spec.inputs if p.name in ("gamma", "beta")]
    operands += [gs.Constant(v, rng.uniform(0.5, 1.5, K).astype(np.float32)) for v in vectors]
    h = tensor("h")
    nodes.append(spec.node("producer", operands, [h]))
    outputs = [tensor(f"y_{linear}", 16) for linear in "ab"]
    for linear, y in zip("ab", outputs, strict=True):
        nodes.append(ops.LINEAR.node(linear, [h, gs.Constant(f"w_{linear}", weight(rng, K, 16))], [y]))
    graph = gs.Graph(nodes, inputs, outputs, opset=18, import_domains=[onnx.helper.make_opsetid("", 18)])
    return ir.Model(graph)


def lowered(model: ir.Model, linears: str = "ab") -> Report:
    report = Report()
    SCHEME.lower(model, dict.fromkeys(linears, E8), None, report, dry_run=False)
    attach_bodies(model, OPS)
    return report


def outputs_of(model: ir.Model, path: Path) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    given = {t.name: activations(rng, 2, 5, K) for t in model.graph.inputs}
    return run_ort(ir.save(model, path)[0], given)


def transforms(model: ir.Model) -> list[gs.Node]:
    return [n for n in model.graph.nodes if n.op.endswith("Hadamard")]


@pytest.mark.parametrize("name", FUSED)
def test_a_producer_becomes_part_of_the_transform(
    name: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(rng.integers(2**31))
    fused, apart = (block(name, np.random.default_rng(seed)) for _ in range(2))
    report = lowered(fused)
    (node,) = transforms(fused)
    assert node.op == f"VQ{name}Hadamard"
    assert {n.op for n in fused.graph.nodes} == {node.op, "VQLinearE8"}
    assert all(value == 0 for key, value in node.attrs.items() if key.startswith("emit_"))
    assert all(f.reason.endswith(f"input from VQ{name}Hadamard") for f in report.findings)
    monkeypatch.setattr(lower, "take_producer", lambda *_: None)
    assert all(f.reason.endswith("input from VQHadamard") for f in lowered(apart).findings)
    got, want = outputs_of(fused, tmp_path / "a.onnx"), outputs_of(apart, tmp_path / "b.onnx")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_what_others_read_stays(rng: np.random.Generator, tmp_path: Path) -> None:
    seed = int(rng.integers(2**31))
    original, model = (block("AddRMSNorm", np.random.default_rng(seed)) for _ in range(2))
    for m in (original, model):
        for name in "sh":
            read = m.graph.tensors()[name]
            m.graph.outputs.append(tensor(f"{name}_read"))
            m.graph.nodes.append(gs.Node("Neg", f"neg_{name}", inputs=[read], outputs=[m.graph.outputs[-1]]))
    lowered(model)
    attach_bodies(original, OPS)
    (node,) = transforms(model)
    assert (node.attrs["emit_sum"], node.attrs["emit_y"]) == (1, 1)
    got, want = outputs_of(model, tmp_path / "a.onnx"), outputs_of(original, tmp_path / "b.onnx")
    for a, b in zip(got[2:], want[2:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


def test_a_linear_left_alone_reads_the_norm(rng: np.random.Generator, tmp_path: Path) -> None:
    seed = int(rng.integers(2**31))
    original, model = (block("RMSNorm", np.random.default_rng(seed)) for _ in range(2))
    lowered(model, "a")
    attach_bodies(original, OPS)
    (node,) = transforms(model)
    assert node.attrs["emit_y"] == 1
    got, want = outputs_of(model, tmp_path / "a.onnx"), outputs_of(original, tmp_path / "b.onnx")
    np.testing.assert_allclose(got[1], want[1], atol=1e-5 * np.abs(want[1]).max())


def test_every_producer_but_merged_ones_fuses() -> None:
    assert {name for name in PRODUCERS if name not in FUSED} == {"SwiGLU", "GeGLU", "GeGLUTanh"}


def test_two_transforms_of_one_tensor(rng: np.random.Generator) -> None:
    model = block("RMSNorm", rng)
    configs: dict[str, Any] = {"a": E8, "b": E8.model_copy(update={"seed": 1})}
    SCHEME.lower(model, configs, None, Report(), dry_run=False)
    first, second = sorted(transforms(model), key=lambda n: n.op)
    assert (first.op, second.op) == ("VQHadamard", "VQRMSNormHadamard")
    assert second.attrs["emit_y"] == 1
    assert first.inputs[0] is second.outputs[1]
