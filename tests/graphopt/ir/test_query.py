"""Questions about graphs."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.ir import query
from tests.support.arrays import weight
from tests.support.rewrite import parse

SOURCE = """
<ir_version: 8, opset_import: ["": 18, "test": 1]>
g (float[n, 4] x) => (float[n, 4] y, float[n, 4] twice)
<float[1, 1] one = {2.5}, float[2] two = {1, 2}> {
    half = Constant <value_float = 0.5> ()
    pair = Constant <value_ints = [3, 4]> ()
    tensor = Constant <value = float[1] {7.0}> ()
    a = Mul(x, half)
    twice = Add(a, a)
    y = test.Relu(twice)
}
"""


@pytest.fixture
def graph() -> gs.Graph:
    return parse(SOURCE).graph


def node(graph: gs.Graph, output: str) -> gs.Node:
    return next(n for n in graph.nodes if n.outputs[0].name == output)


def test_is_op(graph: gs.Graph) -> None:
    relu = node(graph, "y")
    assert query.is_op(relu, "Abs", "Relu", domain="test")
    assert not query.is_op(relu, "Relu")
    assert not query.is_op(None, "Relu")
    mul = node(graph, "a")
    for domain in ("", None, "ai.onnx"):
        mul.domain = domain
        assert query.is_op(mul, "Mul")


def test_producer_and_consumers(graph: gs.Graph) -> None:
    a, twice = node(graph, "a").outputs[0], node(graph, "twice").outputs[0]
    assert query.producer(a) is node(graph, "a")
    assert query.producer(graph.inputs[0]) is None
    assert query.consumers(a) == [node(graph, "twice")]
    assert query.sole_consumer(graph, a) is node(graph, "twice")
    assert query.sole_consumer(graph, twice) is None, "it is an output of the graph, too"
    assert query.is_output(graph, twice)
    assert not query.is_output(graph, a)


def test_constants(graph: gs.Graph, rng: np.random.Generator) -> None:
    half, pair, tensor = (node(graph, n).outputs[0] for n in ("half", "pair", "tensor"))
    assert query.scalar(half) == 0.5
    assert query.scalar(tensor) == 7.0
    assert query.scalar(pair) is None
    np.testing.assert_array_equal(query.constant_array(pair), [3, 4])
    assert query.scalar(graph.inputs[0]) is None
    assert query.is_constant(half)
    assert not query.is_constant(graph.inputs[0])
    big = gs.Constant("big", weight(rng, 65, 64))
    assert query.constant_array(big) is None
    assert query.constant_array(big, limit=None).shape == (65, 64)
    assert query.scalar(gs.Constant("empty", np.zeros((0,), np.float32))) is None


@pytest.mark.parametrize(
    ("shape", "last"), [([2, 3], 3), (["n", np.int64(5)], 5), (["n", "k"], None), ([], None), (None, None)]
)
def test_static_last_dim(shape: list[object] | None, last: int | None) -> None:
    assert query.static_last_dim(gs.Variable("t", np.float32, shape)) == last
