"""`apply_rules` and `replace_tensor`."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.report import Report
from graphopt.core.rule import Refusal, Rule, apply_rules, replace_tensor
from graphopt.ir import Model, query
from graphopt.ir.export import to_proto
from tests.support.rewrite import assert_rewrites, body, parse
from tests.support.runtime import run_reference


class ReluOfNeg(Rule):
    """Relu(Neg(x)) -> Mirror(x), unless something else reads Neg(x)."""

    name = "relu-of-neg"
    anchors = ("Relu",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        neg = query.producer(node.inputs[0])
        if not query.is_op(neg, "Neg"):
            return None
        assert neg is not None
        if query.sole_consumer(graph, neg.outputs[0]) is None:
            others = [n.name for n in query.consumers(neg.outputs[0]) if n is not node]
            return Refusal(f"Neg is also read by {others or 'the outside'}", node=neg.name)
        return neg, node

    def rewrite(self, model: Model, graph: gs.Graph, match: Any) -> str:
        neg, relu = match
        out = gs.Variable(model.unique_name("mirror"))
        graph.nodes.append(gs.Node("Mirror", relu.name, inputs=[neg.inputs[0]], outputs=[out], domain="test"))
        replace_tensor(graph, relu.outputs[0], out)
        return "Mirror"


class MirrorAgain(ReluOfNeg):
    """Would match what `ReluOfNeg` makes, if that were visited in the same call."""

    name = "mirror-again"
    anchors = ("Mirror",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        raise AssertionError("a node made by a rewrite was visited")


def test_rewrite_in_graph_order_with_report() -> None:
    report = assert_rewrites(
        "g (float[2] x) => (float[2] y) { a = Neg(x) [r1] b = Relu(a) c = Abs(b) d = Neg(c) [r2] y = Relu(d) }",
        [ReluOfNeg(), MirrorAgain()],
        """
        %mirror = test.Mirror(%x)
        %c = Abs(%mirror)
        %y = test.Mirror(%c)
        """,
    )
    assert [(f.stage, f.rule, f.node, f.status, f.reason) for f in report.findings] == [
        ("test", "relu-of-neg", "r1", "rewritten", "Mirror"),
        ("test", "relu-of-neg", "r2", "rewritten", "Mirror"),
    ]


def test_refusal_names_node_and_reason() -> None:
    report = assert_rewrites(
        "g (float[2] x) => (float[2] y, float[2] z) { [neg] a = Neg(x) y = Relu(a) [other] z = Abs(a) }",
        ReluOfNeg(),
        None,
        skipped=["also read by ['other']"],
    )
    assert report.findings[0].node == "neg"


def test_other_patterns_are_no_findings() -> None:
    assert not assert_rewrites("g (float[2] x) => (float[2] y) { a = Abs(x) y = Relu(a) }", ReluOfNeg(), None).findings


def test_dead_and_disconnected_nodes_are_not_visited() -> None:
    """A node that a rewrite has left behind would be reported as a near miss."""
    model, report = parse("g (float[2] x) => (float[2] y) { a = Neg(x) dead = Relu(a) y = Abs(x) }"), Report()
    assert not apply_rules(model, [ReluOfNeg()], "test", report)
    assert not report.findings


def test_first_rule_wins() -> None:
    class Other(ReluOfNeg):
        name = "other"

    report = assert_rewrites(
        "g (float[2] x) => (float[2] y) { a = Neg(x) y = Relu(a) }", [Other(), ReluOfNeg()], "%y = test.Mirror(%x)"
    )
    assert [f.rule for f in report.findings] == ["other"]


def test_subgraphs_are_visited_and_functions_are_not() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 18, "mine": 1]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <
                then_branch = t () => (float[2] p) { a = Neg(x)  p = Relu(a) },
                else_branch = e () => (float[2] q) { q = mine.F(x) }
            >
        }
        <domain: "mine", opset_import: ["": 18]>
        F (x) => (y) { a = Neg(x)  y = Relu(a) }
        """
    )
    assert apply_rules(model, [ReluOfNeg()], "test", Report())
    then, other = (model.graph.nodes[0].attrs[n] for n in ("then_branch", "else_branch"))
    assert [n.op for n in then.nodes] == ["Mirror"]
    assert [t.name for t in then.outputs] == ["p"]
    assert [n.op for n in other.nodes] == ["F"]
    assert [n.op_type for n in model.functions[0].node] == ["Neg", "Relu"]


def test_applying_twice_changes_nothing() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Relu(a) }")
    assert apply_rules(model, [ReluOfNeg()], "test", Report())
    before = body(model)
    assert not apply_rules(model, [ReluOfNeg()], "test", Report())
    assert body(model) == before


def run(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    proto = to_proto(model)
    onnx.checker.check_model(proto)
    return dict(
        zip(
            [o.name for o in proto.graph.output],
            run_reference(proto, {"x": x}),
            strict=True,
        )
    )


class TestReplaceTensor:
    """Outputs keep their names and order, whatever stands in for them."""

    SOURCE = """
        g (float[2] x) => (float[2] y, float[2] z)
        <float[2] w = {3, -4}> { a = Relu(x)  y = Neg(a)  b = Abs(y)  z = Add(b, w) }
    """

    def replaced(self, old: str, new: str) -> dict[str, np.ndarray]:
        model = parse(self.SOURCE)
        tensors = model.graph.tensors()
        replace_tensor(model.graph, tensors[old], tensors[new])
        model.tidy()
        return run(model, np.array([1.5, -2.5], np.float32))

    def test_inner_tensor(self) -> None:
        got = self.replaced("b", "a")
        np.testing.assert_array_equal(got["y"], [-1.5, 0])
        np.testing.assert_array_equal(got["z"], [4.5, -4])

    def test_output_by_inner_tensor(self) -> None:
        got = self.replaced("y", "a")
        np.testing.assert_array_equal(got["y"], [1.5, 0])
        np.testing.assert_array_equal(got["z"], [4.5, -4])

    def test_output_by_input(self) -> None:
        got = self.replaced("y", "x")
        assert list(got) == ["y", "z"]
        np.testing.assert_array_equal(got["y"], [1.5, -2.5])
        np.testing.assert_array_equal(got["z"], [4.5, -1.5])

    def test_output_by_constant(self) -> None:
        np.testing.assert_array_equal(self.replaced("y", "w")["y"], [3, -4])

    def test_output_by_another_output(self) -> None:
        got = self.replaced("z", "y")
        assert list(got) == ["y", "z"]
        np.testing.assert_array_equal(got["z"], [-1.5, 0])

    def test_output_listed_twice(self) -> None:
        model = parse(self.SOURCE)
        tensors = model.graph.tensors()
        model.graph.outputs = [tensors["z"], tensors["z"]]
        replace_tensor(model.graph, tensors["z"], tensors["b"])
        assert [t.name for t in model.graph.outputs] == ["z", "z"]
        assert model.graph.outputs[0] is tensors["b"]

    def test_output_of_a_subgraph_by_a_tensor_of_the_outer_graph(self) -> None:
        model = parse(
            """
            g (bool c, float[2] x) => (float[2] y) {
                a = Relu(x)
                y = If(c) <
                    then_branch = t () => (float[2] p) { p = Identity(a) },
                    else_branch = e () => (float[2] q) { q = Neg(a) }
                >
            }
            """
        )
        inner = model.graph.nodes[1].attrs["then_branch"]
        replace_tensor(inner, inner.outputs[0], model.graph.nodes[0].outputs[0])
        model.tidy()
        assert [t.name for t in inner.outputs] == ["p"]
        assert model.graph.nodes[0].outputs[0].name == "a"
        x = np.array([1.5, -2.5], np.float32)
        got = run_reference(to_proto(model), {"c": np.array(True), "x": x})
        np.testing.assert_array_equal(got[0], [1.5, 0])


@pytest.mark.parametrize("status", ["rewritten", "skipped", "note"])
def test_report(status: Any) -> None:
    report = Report()
    for rule in ("b", "a", "b"):
        getattr(report, status)("stage", rule, "node", "why", channels=3)
    assert report.counts(status) == {"a": 1, "b": 2}
    assert report.counts("note" if status != "note" else "skipped") == {}
    assert report.to_dict()["findings"][0] == {
        "stage": "stage", "rule": "b", "node": "node", "status": status, "reason": "why", "detail": {"channels": 3},
    }  # fmt: skip
