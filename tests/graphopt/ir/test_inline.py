"""Calls of functions that hold products, written out when a file is read."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, parser

from graphopt import compile, ir
from graphopt.core.canonical import linears
from tests.support.runtime import run_ort

HEAD = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\n'
LINEAR = """
<domain: "local", opset_import: ["" : 18]> Linear (x, w, b) => (y) { [mm] m = MatMul(x, w) [add] y = Add(m, b) }
"""
MLP = """
<domain: "local", opset_import: ["" : 18, "local" : 1]>
Mlp <slope> (x, w, b, v, c) => (y) {
    [fc1] h = local.Linear(x, w, b)
    a = LeakyRelu<alpha: float = @slope>(h)
    [fc2] y = local.Linear(a, v, c)
}
"""


def reading(source: str, tmp_path: Path) -> tuple[onnx.ModelProto, ir.Model]:
    """The model that ``source`` states, and what is read from its file."""
    proto = parser.parse_model(HEAD + source)
    onnx.checker.check_model(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    return proto, ir.load(tmp_path / "model.onnx")


def assert_same(proto: onnx.ModelProto, model: ir.Model, tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    compile.canonicalize(model)
    ir.save(model, tmp_path / "written.onnx")
    for got, want in zip(run_ort(tmp_path / "written.onnx", feeds), run_ort(proto, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_linears_in_nested_functions_are_found_by_the_names_of_the_calls(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    source = f"""agraph (float[B, 8] x, float[8, 6] w, float[6] b, float[6, 8] v, float[8] c) => (float[B, 8] y) {{
        [layer0] h = local.Mlp<slope = 0.25>(x, w, b, v, c)
        y = local.Mlp<slope = 0.5>(h, w, b, v, c)
    }}{LINEAR}{MLP}"""
    proto, model = reading(source, tmp_path)
    assert not model.functions and all(not n.domain for n in model.graph.nodes)
    products = [n.name for n in model.graph.nodes if n.op == "MatMul"]
    assert products == ["layer0/fc1/mm", "layer0/fc2/mm", "y_Mlp/fc1/mm", "y_Mlp/fc2/mm"]
    shapes = {"x": (3, 8), "w": (8, 6), "b": (6,), "v": (6, 8), "c": (8,)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    assert_same(proto, model, tmp_path, feeds)


def test_linears_of_constants_are_linears(rng: np.random.Generator, tmp_path: Path) -> None:
    source = f"""agraph (float[B, 2] x) => (float[B, 2] y)
        <float[2, 2] w = {{1.5, -2, 3, 4}}, float[2] b = {{-1, 2}}> {{
        [first] h = local.Linear(x, w, b)
        [second] y = local.Linear(h, w, b)
    }}{LINEAR}"""
    proto, model = reading(source, tmp_path)
    assert_same(proto, model, tmp_path, {"x": rng.standard_normal((3, 2)).astype(np.float32)})
    assert [linear.name for linear in linears(model)] == ["first/mm", "second/mm"]


def test_functions_without_products_and_of_other_versions_stay(tmp_path: Path) -> None:
    source = """agraph (float[4, 4] x) => (float[4, 4] y) { a = local.Twice(x) y = local.Old(a) }
    <domain: "local", opset_import: ["" : 18]> Twice (x) => (y) { y = Add(x, x) }
    <domain: "local", opset_import: ["" : 17]> Old (x) => (y) { y = MatMul(x, x) }"""
    _, model = reading(source, tmp_path)
    assert [f.name for f in model.functions] == ["Twice", "Old"]
    assert [n.op for n in model.graph.nodes] == ["Twice", "Old"]


def test_bodies_with_branches_and_names_that_the_graph_has(rng: np.random.Generator, tmp_path: Path) -> None:
    """A value of a branch is the body's own; an output may be an input, and an input left out."""
    body = parser.parse_graph("""g (bool c) => (float[2, 2] y) {
        y = If(c) <
            then_branch = t () => (float[2, 2] p) { k = MatMul(x, x) p = Neg(k) },
            else_branch = e () => (float[2, 2] q) { k = Abs(x) q = Neg(k) }
        >
    }""")
    function = helper.make_function(
        "local", "Choose", ["x", "c", "unused"], ["y", "x"], list(body.node), [helper.make_opsetid("", 18)]
    )
    graph = parser.parse_graph(
        "agraph (float[2, 2] x, bool c) => (float[2, 2] z, float[2, 2] fk, float[2, 2] same) { fk = Neg(x) }"
    )
    graph.node[0].output[0] = graph.output[1].name = "f/k"
    graph.node.append(helper.make_node("Choose", ["x", "c"], ["z", "same"], name="f", domain="local"))
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)
    onnx.save(proto, tmp_path / "model.onnx")
    x = rng.standard_normal((2, 2)).astype(np.float32)
    for choice in (True, False):
        model = ir.load(tmp_path / "model.onnx")
        assert not model.functions
        names = [t.name for g in model.all_graphs() for n in g.nodes for t in n.outputs]
        assert len(names) == len(set(names)) + 1  # both branches have a k, which is one name in either
        ir.save(model, tmp_path / "written.onnx")
        z, negative, same = run_ort(tmp_path / "written.onnx", {"x": x, "c": np.array(choice)})
        np.testing.assert_allclose(z, -(x @ x) if choice else -np.abs(x), rtol=1e-6)
        assert np.array_equal(negative, -x) and np.array_equal(same, x)


def test_attributes_take_their_defaults(tmp_path: Path) -> None:
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    nodes = [
        helper.make_node("Gemm", ["x", "x"], ["m"], name="gemm"),
        helper.make_node("Softmax", ["m"], ["y"], name="soft"),
    ]
    for node, attribute, kind in ((nodes[0], "alpha", "FLOAT"), (nodes[1], "axis", "INT")):
        node.attribute.add(name=attribute, ref_attr_name=attribute, type=getattr(onnx.AttributeProto, kind))
    function = helper.make_function(
        "local", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)], ["axis"],
        [helper.make_attribute("alpha", 0.5)],
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="local", name="f")], "g",
        [value("x", TensorProto.FLOAT, [2, 2])], [value("y", TensorProto.FLOAT, [2, 2])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)
    onnx.save(proto, tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    assert [dict(n.attrs) for n in model.graph.nodes] == [{"alpha": 0.5}, {}]
    ir.save(model, tmp_path / "written.onnx")
    m = 0.5 * (x @ x)
    want = np.exp(m - m.max(1, keepdims=True))
    np.testing.assert_allclose(
        run_ort(tmp_path / "written.onnx", {"x": x})[0], want / want.sum(1, keepdims=True), rtol=1e-5
    )


def test_definitions_of_plugins_stay_calls(tmp_path: Path) -> None:
    source = """agraph (float[4, 4] x) => (float[4, 4] y) { y = graphopt.Linear(x, x) }
    <domain: "graphopt", opset_import: ["" : 18]> Linear (x, w) => (y) { y = MatMul(x, w) }"""
    proto = parser.parse_model(HEAD.replace("local", "graphopt") + source)
    onnx.save(proto, tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    assert [n.op for n in model.graph.nodes] == ["Linear"] and len(model.functions) == 1
