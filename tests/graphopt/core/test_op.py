"""`OpSpec`: schema, body and nodes; that bodies compute what evaluators compute is in tests/contract/test_ops.py."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.body import BodyBuilder, shared
from graphopt.core.op import DOMAIN, Attribute, OpSpec, Param, attach_bodies, custom_nodes
from graphopt.errors import InternalError
from graphopt.ir.export import to_proto
from tests.support.rewrite import parse
from tests.support.runtime import run_reference


def _body(b: BodyBuilder) -> None:
    total = b.op("Add", b.cast("x"), b.attribute("shift"))
    peak = b.reduce("Max", total, -1)
    b.cast_like(b.op("Mul", peak, b.cast(b.attribute("times", onnx.AttributeProto.INT))), "x", out="y")
    b.output(b.cast("x", onnx.TensorProto.FLOAT), "z")


def _evaluate(x: np.ndarray, *, shift: float = 0.5, times: int = 2) -> tuple[np.ndarray, ...]:
    wide = x.astype(np.float32)
    return ((wide + np.float32(shift)).max(-1, keepdims=True) * times).astype(x.dtype), wide


def spec(*, plugin: bool = False, name: str = "Toy") -> OpSpec:
    return OpSpec(
        name=name,
        doc="y = times * max(x + shift)",
        inputs=(Param("x", "(..., K) T"),),
        outputs=(Param("y", "(..., 1) T"), Param("z", "(..., K) float32")),
        attributes=(Attribute("shift", 0.5, ""), Attribute("times", 2, "")),
        body=_body,
        evaluate=_evaluate,
        examples=lambda rng, dtype: (rng.standard_normal((3, 5)).astype(dtype),),
        plugin=plugin,
    )


def model_with(*specs: OpSpec, **attrs: Any) -> Any:
    """Return a model whose outputs are those of one node per op, all reading the input x."""
    model = parse(
        '<ir_version: 8, opset_import: ["": 18, "other": 2]> g (float[n, 5] x) => (float[n, 5] r) { r = Relu(x) }'
    )
    for s in specs:
        outputs = [gs.Variable(f"{s.name}_{p.name}", np.float32, ["n", "k"]) for p in s.outputs]
        model.graph.nodes.append(s.node(s.name.lower(), model.graph.inputs, outputs, **attrs))
        model.graph.outputs += outputs
    return model


@pytest.mark.parametrize("opset", range(15, 24))
def test_body_is_a_valid_function(opset: int) -> None:
    toy = spec()
    model = model_with(toy)
    model.graph.opset = opset
    model.graph.import_domains = None
    attach_bodies(model, [toy])
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {o.domain: o.version for o in proto.opset_import} == {"": opset, DOMAIN: 1}
    assert proto.functions[0].opset_import[0].version == opset
    names = [n.name for n in proto.functions[0].node]
    assert len(set(names)) == len(names) and all(names), "TensorRT inlines bodies under the names of their nodes"
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    for got, expected in zip(run_reference(proto, {"x": x})[1:], _evaluate(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_attributes_reach_the_body() -> None:
    toy = spec()
    model = model_with(toy, shift=3, times=-4)
    assert model.graph.nodes[1].attrs == {"shift": 3.0, "times": -4}
    assert isinstance(model.graph.nodes[1].attrs["shift"], float), "an integer would become an INT attribute"
    attach_bodies(model, [toy])
    x = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    got = run_reference(to_proto(model), {"x": x})[1]
    np.testing.assert_allclose(got, _evaluate(x, shift=3, times=-4)[0], rtol=1e-6)


def test_functions_are_built_once_per_opset() -> None:
    toy = spec()
    assert toy.function(18) is toy.function(18)
    assert toy.function(17) is not toy.function(18)


def test_plugin_node_names_its_plugin() -> None:
    toy = spec(plugin=True)
    node = model_with(toy).graph.nodes[1]
    assert (node.domain, node.attrs["plugin_version"], node.attrs["plugin_namespace"]) == (DOMAIN, "1", "graphopt")
    assert {"plugin_version", "plugin_namespace"} <= set(toy.function(18).attribute)
    plain = model_with(spec()).graph.nodes[1]
    assert not {"plugin_version", "plugin_namespace"} & set(plain.attrs)


def test_wrong_use_is_a_bug() -> None:
    toy, x, y, z = spec(), *(gs.Variable(n) for n in "xyz")
    with pytest.raises(InternalError, match="Toy 'n' built with 2 inputs"):
        toy.node("n", [x, x], [y, z])
    with pytest.raises(InternalError, match="0 outputs"):
        toy.node("n", [x], [])
    with pytest.raises(InternalError, match=r"Toy has no attributes \['shfit'\]"):
        toy.node("n", [x], [y, z], shfit=1.0)


def test_is_node() -> None:
    node = model_with(spec()).graph.nodes[1]
    assert spec().is_node(node)
    assert not spec(name="Other").is_node(node)
    assert not spec().is_node(None)
    node.domain = "elsewhere"
    assert not spec().is_node(node)


def test_attach_bodies_keeps_foreign_functions_and_drops_unused_ones() -> None:
    a, b = spec(name="A"), spec(name="B")
    model = model_with(a, b)
    foreign = onnx.helper.make_function("other", "F", [], [], [], [])
    model.functions.append(foreign)
    attach_bodies(model, [b, a])
    assert [(f.domain, f.name) for f in model.functions] == [("other", "F"), (DOMAIN, "A"), (DOMAIN, "B")]
    attach_bodies(model, [a, b])
    assert len(model.functions) == 3
    model.graph.nodes = model.graph.nodes[:2]
    attach_bodies(model, [a, b])
    assert [f.name for f in model.functions] == ["F", "A"]
    model.graph.nodes = model.graph.nodes[:1]
    attach_bodies(model, [a, b])
    assert [f.name for f in model.functions] == ["F"]
    assert {o.domain for o in model.graph.import_domains} == {"", "other"}


def test_attach_bodies_needs_a_spec_for_every_node() -> None:
    model = model_with(spec(name="A"))
    with pytest.raises(InternalError, match=r"no OpSpec for graphopt ops \['A'\]"):
        attach_bodies(model, [spec(name="B")])


def test_custom_nodes_are_found_in_subgraphs() -> None:
    toy = spec()
    model = parse(
        """
        g (bool c, float[n, 5] x) => (float[n, 5] y) {
            y = If(c) <
                then_branch = t () => (float[n, 5] p) { p = Abs(x) },
                else_branch = e () => (float[n, 5] q) { q = Neg(x) }
            >
        }
        """
    )
    inner = model.graph.nodes[0].attrs["then_branch"]
    inner.nodes.append(toy.node("deep", [model.graph.inputs[1]], [gs.Variable("u"), gs.Variable("v")]))
    assert [n.name for n in custom_nodes(model)] == ["deep"]
    attach_bodies(model, [toy])
    assert [f.name for f in model.functions] == ["Toy"]


def test_equal_nodes_of_a_body_are_written_once() -> None:
    def body(b: BodyBuilder) -> None:
        b.attribute("a")
        sums = [b.op("Add", b.op("Mul", "x", b.const(2.0)), b.attribute(name)) for name in ("a", "b", "a")]
        b.op("Sum", *sums, outputs=["y"])
        b.op("Sum", *sums, outputs=["z"])

    builder = BodyBuilder(18)
    body(builder)
    kept = shared(builder.nodes, {"y", "z"})
    assert Counter(n.op_type for n in kept) == {"Constant": 3, "Mul": 1, "Add": 2, "Sum": 2}
    first, second = (n.output[0] for n in kept if n.op_type == "Add")
    assert [[*n.input] for n in kept if n.op_type == "Sum"] == [[first, second, first]] * 2
