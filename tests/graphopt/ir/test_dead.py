"""Dead nodes: which they are, that they go without a trace, and that it takes no longer for many readers."""

import time

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.ir import query
from graphopt.ir.dead import dead_nodes, remove_dead
from tests.support.rewrite import parse

NESTED = """
g (bool c, float[2] x, float[2] z) => (float[2] y) {
    [first] a = Relu(x)
    [outer] b = Neg(x)
    [lost] d = Exp(a)
    [loose] e = Add(d, x)
    [branch] y = If(c) <
        then_branch = t () => (float[2] p) { [unused] u = Neg(a)  [deep] p = Abs(a) },
        else_branch = e () => (float[2] q) { [unread] v = Neg(d)  [other] q = Abs(b) }
    >
}
"""


def test_what_only_a_branch_reads_is_alive() -> None:
    """Node 'lost' is read in a branch too, by a node that is dead itself."""
    graph = parse(NESTED).graph
    names = {id(n): n.name for n in graph.nodes}
    assert {names[i] for i in dead_nodes(graph)} == {"loose"}
    remove_dead(graph)
    assert [n.name for n in graph.nodes] == ["first", "outer", "branch"]
    assert [n.name for sub in graph.subgraphs() for n in sub.nodes] == ["deep", "other"]
    assert [t.name for t in graph.inputs] == ["c", "x", "z"]


def test_readers_and_makers_of_what_is_left_are_alive() -> None:
    graph = parse(NESTED).graph
    x, a = graph.inputs[1], graph.nodes[0].outputs[0]
    loose = next(n for n in graph.nodes if n.name == "loose")
    remove_dead(graph)
    assert [n.name for n in query.consumers(x)] == ["first", "outer"]
    assert [n.name for n in query.consumers(a)] == ["deep"]
    assert not list(loose.inputs)
    assert not list(loose.outputs)


def chain(length: int) -> gs.Graph:
    """Nodes of one constant, each second of which is dead."""
    shared = gs.Constant("shared", np.ones(2, np.float32))
    x = gs.Variable("x", np.float32, [2])
    graph = gs.Graph(inputs=[x], opset=18)
    for i in range(length):
        y = gs.Variable(f"y{i}", np.float32, [2])
        graph.nodes.append(gs.Node("Add", f"n{i}", {"alpha": i}, [x, shared], [y]))
        x = x if i % 2 else y
    graph.outputs = [x]
    return graph


@pytest.mark.parametrize("length", [2, 3, 1000])
def test_as_graphsurgeon_does_it(length: int) -> None:
    ours, theirs = chain(length), chain(length)
    remove_dead(ours)
    theirs.cleanup()
    assert [n.name for n in ours.nodes] == [n.name for n in theirs.nodes]
    constants = [next(n.inputs[1] for n in graph.nodes) for graph in (ours, theirs)]
    assert [n.name for n in constants[0].outputs] == [n.name for n in constants[1].outputs]


def test_time_grows_with_the_graph() -> None:
    """graphsurgeon takes 16 times as long for four times as many readers."""

    def seconds(length: int) -> float:
        graph = chain(length)
        start = time.process_time()
        remove_dead(graph)
        return time.process_time() - start

    small = min(seconds(2000) for _ in range(3))
    assert min(seconds(8000) for _ in range(3)) < 9 * small
