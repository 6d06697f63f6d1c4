"""Linears as schemes and calibration see them."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.canonical import assigned, bias_of, linears
from graphopt.core.report import Report
from graphopt.errors import InternalError
from graphopt.ir import weights
from graphopt.ir.model import Model
from tests.support.arrays import weight
from tests.support.rewrite import parse

SOURCE = """
g (float[n, 6] x) => (float[n, 4] y)
<float[6, 4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}, float[4] b = {1, 2, 3, 4}> {
    [q] a = graphopt.Linear <trans_w = 0> (x, w)
    [k] c = graphopt.LinearBias <trans_w = 1> (x, v, b)
    [foreign] d = other.Linear (x, w)
    [matmul] e = MatMul(x, w)
    y = Sum(a, c, d, e)
}
"""


@pytest.mark.parametrize("start, stop", [(0, 4), (1, 3), (3, 9)])
def test_views(rng: np.random.Generator, start: int, stop: int) -> None:
    model = parse('<ir_version: 8, opset_import: ["": 18, "graphopt": 1, "other": 1]>' + SOURCE)
    stored = weight(rng, 4, 6)
    model.graph.nodes[1].inputs[1] = gs.Constant("v", stored)
    q, k = linears(model)
    assert [v.name for v in (q, k)] == ["q", "k"]
    assert [v.shape for v in (q, k)] == [(4, 6), (4, 6)]
    assert [v.transposed for v in (q, k)] == [False, True]
    assert q.bias is None
    assert k.bias is not None
    assert k.bias.name == "b"
    assert q.x is model.graph.inputs[0]
    plain = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(q.rows(start, stop), plain.T[start:stop])
    np.testing.assert_array_equal(k.rows(start, stop), stored[start:stop])


def opened(rng: np.random.Generator) -> Model:
    model = parse('<ir_version: 8, opset_import: ["": 18, "graphopt": 1, "other": 1]>' + SOURCE)
    model.graph.nodes[1].inputs[1] = gs.Constant("v", weight(rng, 4, 6))
    return model


def test_assigned_linears_keep_their_order_and_refusals_their_reasons(rng: np.random.Generator) -> None:
    report = Report()
    found = assigned(opened(rng), {"k": 2, "q": 1, "absent": 3}, report, stage="lower", scheme="s")
    assert [(linear.name, config) for linear, config in found] == [("k", 2)]
    (skipped,) = report.findings
    assert (skipped.stage, skipped.rule, skipped.node, skipped.status) == ("lower", "s", "q", "skipped")
    assert skipped.reason == "weight 'w' is shared with node 'foreign' (Linear)"


def test_a_missing_bias_is_zeros_of_the_weights_type(rng: np.random.Generator) -> None:
    model = opened(rng)
    q, k = linears(model)
    assert bias_of(model, k) is k.bias
    made = bias_of(model, q)
    assert isinstance(made, gs.Constant)
    values = weights.read(made)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.zeros(4))


def test_a_bias_of_another_shape_is_our_bug(rng: np.random.Generator) -> None:
    model = opened(rng)
    linear = linears(model)[1]
    linear.node.inputs[2] = gs.Constant("b3", np.ones(3, np.float32))
    with pytest.raises(InternalError, match="bias of 'k'"):
        bias_of(model, linear)
