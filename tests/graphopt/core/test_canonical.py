"""Linears as schemes and calibration see them."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.canonical import linears
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
