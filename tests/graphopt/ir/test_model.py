"""`Model`: names, scopes and tidying up."""

import onnx_graphsurgeon as gs

from graphopt.ir import Model
from tests.support.rewrite import parse

NESTED = """
g (bool c, float[2] x) => (float[2] y) {
    [first] a = Relu(x)
    dead = Exp(a)
    [branch] y = If(c) <
        then_branch = t () => (float[2] p) { unused = Neg(a)  [deep] p = Abs(a) },
        else_branch = e () => (float[2] q) { q = Abs(a) }
    >
}
"""


def test_unique_name_knows_every_scope_and_what_it_gave_out() -> None:
    model = parse(NESTED)
    assert [model.unique_name(n) for n in ("new", "new", "new")] == ["new", "new_1", "new_2"]
    assert [model.unique_name(n) for n in ("a", "x", "first", "deep", "p", "unused")] == [
        "a_1",
        "x_1",
        "first_1",
        "deep_1",
        "p_1",
        "unused_1",
    ]


def test_unique_name_knows_nodes_added_before_tidy() -> None:
    model = parse(NESTED)
    model.unique_name("before")
    model.graph.nodes.append(
        gs.Node("Relu", "mine", inputs=[model.graph.inputs[1]], outputs=[out := gs.Variable("out")])
    )
    model.graph.outputs.append(out)
    model.tidy()
    assert [model.unique_name("mine"), model.unique_name("out")] == ["mine_1", "out_1"]


def test_all_graphs_goes_depth_first_in_node_order() -> None:
    assert [g.name for g in parse(NESTED).all_graphs()] == ["g", "t", "e"]


def test_tidy_removes_dead_nodes_in_every_scope_but_no_inputs() -> None:
    model = parse(NESTED)
    model.graph.inputs.append(gs.Variable("spare", dtype="float32", shape=[1]))
    model.tidy()
    assert [[n.op for n in g.nodes] for g in model.all_graphs()] == [["Relu", "If"], ["Abs"], ["Abs"]]
    assert [t.name for t in model.graph.inputs] == ["c", "x", "spare"]


def test_opset_of_a_model_made_in_memory() -> None:
    assert Model(gs.Graph(opset=21)).opset == 21
