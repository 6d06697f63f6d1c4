"""Canonical ops written back into standard operators, from their bodies."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import ir
from graphopt.core.op import DOMAIN, OpSpec, attach_bodies
from graphopt.core.report import Report
from graphopt.ir.export import to_proto
from graphopt.ir.model import Model
from graphopt.ir.weights import onnx_dtype
from graphopt.passes.canonicalize import OPS, legalize, ops
from tests.support.arrays import FLOATS
from tests.support.runtime import run_ort, run_reference

#: The inlined nodes are those of the body, in the same order: nothing may differ but the fusion of Casts.
TOLERANCE = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def single(spec: OpSpec, arrays: list[np.ndarray], opset: int, **attrs: Any) -> Model:
    """A model of one canonical node; its weights (w, gamma, ...) are inputs, too."""
    inputs = [gs.Variable(p.name, onnx_or_numpy(a), list(a.shape)) for p, a in zip(spec.inputs, arrays, strict=True)]
    (result,) = spec.evaluate(*arrays, **attrs)
    out = gs.Variable("y", inputs[0].dtype, list(result.shape))
    node = spec.node("layer", inputs, [out], **attrs)
    imports = [onnx.helper.make_opsetid("", opset)]
    model = Model(gs.Graph([node], inputs, [out], opset=opset, import_domains=imports))
    attach_bodies(model, OPS)
    return model


def onnx_or_numpy(array: np.ndarray) -> Any:
    kind = onnx_dtype(array.dtype)
    return kind if kind == onnx.TensorProto.BFLOAT16 else array.dtype


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("opset", [13, 17, 18, 23])
@pytest.mark.parametrize("spec", OPS, ids=lambda s: s.name)
def test_equals_the_evaluator(spec: OpSpec, opset: int, dtype: str, rng: np.random.Generator, tmp_path: Path) -> None:
    arrays = [np.ascontiguousarray(a) for a in spec.examples(rng, FLOATS[dtype])]
    attrs = {"scale": 0.37} if spec is ops.ATTENTION else {}
    model = single(spec, arrays, opset, **attrs)
    legalize(model, Report())
    attach_bodies(model, OPS)
    assert not model.functions and {n.domain or "" for n in model.graph.nodes} == {""}
    ir.save(model, tmp_path / "legal.onnx")
    proto = onnx.load(tmp_path / "legal.onnx")
    onnx.checker.check_model(proto, full_check=True)
    feeds = dict(zip((p.name for p in spec.inputs), arrays, strict=True))
    (got,) = (run_reference if dtype == "bfloat16" else run_ort)(proto, feeds)
    (want,) = spec.evaluate(*arrays, **attrs)
    assert got.dtype == want.dtype
    error = np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))
    assert error <= TOLERANCE[dtype] * np.linalg.norm(want.astype(np.float64))


@pytest.mark.parametrize("trans_w", [0, 1])
@pytest.mark.parametrize("spec", [ops.LINEAR, ops.LINEAR_BIAS], ids=lambda s: s.name)
def test_linears_become_products_without_a_branch(spec: OpSpec, trans_w: int, rng: np.random.Generator) -> None:
    arrays = list(spec.examples(rng, np.float32))
    if trans_w:
        arrays[1] = np.ascontiguousarray(arrays[1].T)
    model = single(spec, arrays, 18, trans_w=trans_w)
    legalize(model, Report())
    expected = ["Transpose"] * trans_w + ["MatMul"] + ["Add"] * (spec is ops.LINEAR_BIAS)
    assert [n.op for n in model.graph.nodes] == expected


def test_float32_needs_no_casts(rng: np.random.Generator) -> None:
    for spec in OPS:
        model = single(spec, list(spec.examples(rng, np.float32)), 18)
        legalize(model, Report())
        assert not {"Cast", "CastLike"} & {n.op for n in model.graph.nodes}


def test_names_and_metadata_stay(rng: np.random.Generator) -> None:
    model = single(ops.RMS_NORM, list(ops.RMS_NORM.examples(rng, np.float32)), 18)
    model.graph.nodes[0].metadata = {"pkg.torch.onnx.name_scopes": "['', 'norm', 'mul']"}
    legalize(model, Report())
    assert all(n.name.startswith("layer/") for n in model.graph.nodes)
    assert all(n.metadata for n in model.graph.nodes)
    names = [t.name for n in model.graph.nodes for t in n.outputs]
    assert len(names) == len(set(names)) and names[-1] == "y"


@pytest.mark.parametrize("spec", OPS, ids=lambda s: s.name)
def test_names_that_the_file_has_already_are_not_given_out(spec: OpSpec, rng: np.random.Generator) -> None:
    """A file that was optimized before has names of this kind, of another node perhaps."""
    arrays = list(spec.examples(rng, np.float32))
    model = single(spec, arrays, 18)
    taken = [f"layer/{name}" for node in spec.function(18).node for name in node.output]
    copies = [gs.Variable(name, np.float32, list(arrays[0].shape)) for name in taken]
    x = model.graph.inputs[0]
    model.graph.nodes += [gs.Node("Relu", name, inputs=[x], outputs=[t]) for name, t in zip(taken, copies, strict=True)]
    model.graph.outputs += copies
    legalize(model, Report())
    names = [t.name for n in model.graph.nodes for t in n.outputs]
    assert len(names) == len(set(names)) and set(taken) < set(names)
    assert len({n.name for n in model.graph.nodes}) == len(model.graph.nodes)
    feeds = dict(zip((p.name for p in spec.inputs), arrays, strict=True))
    y, *others = run_ort(to_proto(model), feeds)
    want = spec.evaluate(*arrays)[0]
    assert np.linalg.norm(y - want) <= TOLERANCE["float32"] * np.linalg.norm(want)
    assert all(np.array_equal(other, np.maximum(arrays[0], 0)) for other in others)


def test_report_counts(rng: np.random.Generator) -> None:
    report = Report()
    legalize(single(ops.LINEAR, list(ops.LINEAR.examples(rng, np.float32)), 18), report)
    assert [(f.rule, f.node, f.detail) for f in report.findings] == [("inline", "Linear", {"nodes": 1})]


def test_models_without_canonical_ops_are_left_alone() -> None:
    x, y = gs.Variable("x", np.float32, ["B"]), gs.Variable("y", np.float32, ["B"])
    graph = gs.Graph([gs.Node("Identity", "copy", inputs=[x], outputs=[y])], [x], [y], opset=18)
    report = Report()
    legalize(Model(graph), report)
    assert not report.findings and [n.name for n in graph.nodes] == ["copy"]


def test_subgraphs(rng: np.random.Generator) -> None:
    """Canonical ops inside a branch are written out there."""
    x, w = gs.Variable("x", np.float32, ["B", 4]), gs.Constant("w", rng.standard_normal((4, 3)).astype(np.float32))
    inner, other, y = (gs.Variable(n, np.float32, ["B", 3]) for n in ("inner", "other", "y"))
    then = gs.Graph([ops.LINEAR.node("fc", [x, w], [inner])], [], [inner], opset=18, name="then")
    product = gs.Node("MatMul", "mm", inputs=[x, w], outputs=[other])
    branches = {"then_branch": then, "else_branch": gs.Graph([product], [], [other], opset=18, name="else")}
    condition = gs.Variable("c", np.bool_, [])
    graph = gs.Graph([gs.Node("If", "if", branches, [condition], [y])], [x, condition], [y], opset=18)
    model = Model(graph)
    legalize(model, Report())
    ops_of = Counter(n.op for g in model.all_graphs() for n in g.nodes)
    assert ops_of == {"If": 1, "MatMul": 2} and not [
        n for g in model.all_graphs() for n in g.nodes if n.domain == DOMAIN
    ]
