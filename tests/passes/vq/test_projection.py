"""Which linear makes the heads of queries or keys: what is looked through, and what is left alone."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.ir.dead import dead_nodes
from graphopt.passes.canonicalize import ops
from graphopt.passes.vq.projection import Projection, find_projection

SIZE, ALL, KEPT = 8, 5, 2


class Chain:
    """x -> Linear -> Reshape (b, s, 5, 8) -> Slice of two heads -> y, which only a node that is about to go reads."""

    def __init__(self, bounds: tuple[int, ...] = (1, 3, 2)) -> None:
        x = gs.Variable("x", np.float32, ["b", "s", 24])
        self.w = gs.Constant("w", np.random.default_rng(0).standard_normal((24, ALL * SIZE)).astype(np.float32))
        self.rows = gs.Variable("rows", np.float32, ["b", "s", ALL * SIZE])
        self.whole = gs.Variable("whole", np.float32, ["b", "s", ALL, SIZE])
        self.y = gs.Variable("y", np.float32, ["b", "s", KEPT, SIZE])
        split = gs.Constant("split", np.array([0, 0, ALL, SIZE]))
        cuts = [gs.Constant(f"cut{i}", np.array([value])) for i, value in enumerate(bounds)]
        gone = gs.Variable("gone", np.float32, ["b", "s", KEPT, SIZE])
        self.linear = ops.LINEAR.node("lin", [x, self.w], [self.rows])
        nodes = [
            self.linear,
            gs.Node("Reshape", "heads", {}, [self.rows, split], [self.whole]),
            gs.Node("Slice", "cut", {}, [self.whole, *cuts], [self.y]),
            gs.Node("Neg", "going", {}, [self.y], [gone]),
        ]
        kept = gs.Variable("kept", np.float32, ["b", "s", 24])
        nodes.append(gs.Node("Abs", "stays", {}, [x], [kept]))
        self.graph = gs.Graph(nodes, [x], [kept], opset=18)

    def found(self) -> Projection | str:
        return find_projection(self.graph, self.y, SIZE, dead_nodes(self.graph))

    def read(self, tensor: gs.Tensor) -> None:
        """Let an output of the graph follow from ``tensor``."""
        out = gs.Variable("out", np.float32)
        self.graph.nodes.append(gs.Node("Exp", "reader", {}, [tensor], [out]))
        self.graph.outputs.append(out)


@pytest.mark.parametrize("bounds", [(1, 3, 2), (1, 3, 2, 1)])
def test_heads_are_rows_of_the_linear(bounds: tuple[int, ...]) -> None:
    found = Chain(bounds).found()
    assert isinstance(found, Projection)
    assert (found.first, found.heads, found.norm) == (SIZE, KEPT, None)


@pytest.mark.parametrize("bounds", [(1, 3, 1), (1, 3, 3), (1, 5, 2, 2), (-3, -1, 2)])
def test_slices_of_something_else(bounds: tuple[int, ...]) -> None:
    """Of another axis, of every other head, or counted from the end."""
    assert Chain(bounds).found() == "the heads of 'y' are not known to be rows of 'lin'"


@pytest.mark.parametrize("name", ["y", "whole", "rows"])
def test_what_others_read_is_left_alone(name: str) -> None:
    chain = Chain()
    chain.read(getattr(chain, name))
    assert chain.found() == f"'{name}' is read by others too"
    other = Chain()
    other.graph.outputs.append(getattr(other, name))
    assert other.found() == f"'{name}' is read by others too"


def test_weights_that_are_computed_are_left_alone() -> None:
    chain = Chain()
    chain.linear.inputs[1] = gs.Variable("w", np.float32, [24, ALL * SIZE])
    assert chain.found() == "the weight of 'lin' is not a constant"


def test_what_makes_no_heads() -> None:
    chain = Chain()
    chain.linear.op = "Foreign"
    assert chain.found() == "'y' is not made by a linear"
