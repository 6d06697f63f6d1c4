"""Topological order: producers first, everything else in the order it had."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import InternalError
from graphopt.ir.order import sort_nodes
from tests.support.rewrite import parse


@given(parents=st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=30), shuffle=st.randoms())
def test_random_graphs(parents: list[list[int]], shuffle: object) -> None:
    tensors = [gs.Variable(f"t{i}") for i in range(len(parents))]
    nodes = [
        gs.Node("Op", str(i), inputs=[tensors[p % i] for p in before] if i else [], outputs=[tensors[i]])
        for i, before in enumerate(parents)
    ]
    graph = gs.Graph(list(nodes), outputs=[tensors[-1]])
    sort_nodes(graph)
    assert [n.name for n in graph.nodes] == [n.name for n in nodes], "a sorted graph was reordered"
    shuffle.shuffle(graph.nodes)  # type: ignore[attr-defined]
    sort_nodes(graph)
    place = {id(n): i for i, n in enumerate(graph.nodes)}
    assert len(place) == len(nodes)
    assert all(place[id(t.inputs[0])] < place[id(n)] for n in nodes for t in n.inputs)


def test_appended_node_comes_just_before_its_reader() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Relu(x)  b = Neg(a)  c = Abs(b)  y = Sqrt(c) }")
    a, _, c, _ = model.graph.nodes
    new = gs.Variable("new", np.float32)
    c.inputs = [new]
    model.graph.nodes.append(gs.Node("Exp", "exp", inputs=[a.outputs[0]], outputs=[new]))
    model.tidy()
    assert [n.op for n in model.graph.nodes] == ["Relu", "Exp", "Abs", "Sqrt"]


def test_deep_graph_in_reverse() -> None:
    """Deeper than Python's recursion limit."""
    tensors = [gs.Variable(str(i)) for i in range(3001)]
    nodes = [gs.Node("Op", str(i), inputs=[tensors[i]], outputs=[tensors[i + 1]]) for i in range(3000)]
    graph = gs.Graph(nodes[::-1], inputs=tensors[:1], outputs=tensors[-1:])
    sort_nodes(graph)
    assert [n.name for n in graph.nodes] == [str(i) for i in range(3000)]


@pytest.mark.parametrize("links", [[(0, 1), (1, 0)], [(0, 0)], [(0, 1), (1, 2), (2, 1)]])
def test_cycle(links: list[tuple[int, int]]) -> None:
    tensors = [gs.Variable(str(i)) for i in range(3)]
    nodes = [
        gs.Node("Op", f"n{i}", inputs=[tensors[a] for a, b in links if b == i], outputs=[tensors[i]]) for i in range(3)
    ]
    with pytest.raises(InternalError, match=r"graph 'g' has a cycle through node 'n\d'"):
        sort_nodes(gs.Graph(nodes, outputs=tensors, name="g"))


def test_what_a_subgraph_reads_comes_first() -> None:
    model = parse(
        """
        g (bool c, float[2] x) => (float[2] y) {
            a = Relu(x)
            y = If(c) <
                then_branch = t () => (float[2] p) { b = Neg(a)  p = Abs(b) },
                else_branch = e () => (float[2] q) { q = Abs(a) }
            >
        }
        """
    )
    model.graph.nodes.reverse()
    inner = model.graph.nodes[0].attrs["then_branch"]
    inner.nodes.reverse()
    sort_nodes(model.graph)
    assert [n.op for n in model.graph.nodes] == ["Relu", "If"]
    assert [n.op for n in inner.nodes] == ["Neg", "Abs"]
