"""Shape inference on the graph."""

import ml_dtypes
import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.weights import DiskValues
from tests.support.arrays import weight
from tests.support.rewrite import parse


def test_fills_in_what_is_unknown_and_keeps_what_is_known() -> None:
    model = parse("g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x)  s = Shape(a)  b = Reshape(a, s)  y = Neg(b) }")
    a = model.graph.nodes[0].outputs[0]
    a.shape = ["known", 4]
    infer_shapes(model)
    s, b = (model.graph.nodes[i].outputs[0] for i in (1, 2))
    assert a.shape == ["known", 4]
    assert (s.dtype, s.shape) == (np.int64, [2])
    assert (b.dtype, b.shape[-1]) == (np.float32, 4)


def test_weights_stay_on_disk(rng: np.random.Generator) -> None:
    model = parse("g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y) { h = MatMul(x, w)  y = Relu(h) }")
    constant = model.store.put("weight", weight(rng, 64, 48))
    model.graph.nodes[0].inputs[1] = constant
    infer_shapes(model)
    assert model.graph.nodes[0].outputs[0].shape == ["n", 48]
    assert isinstance(constant._values, DiskValues)


def test_bfloat16_is_named_as_graphsurgeon_names_it() -> None:
    model = parse("g (bfloat16[n] x) => (bfloat16[n] y) { a = Neg(x)  y = Abs(a) }")
    infer_shapes(model)
    assert model.graph.nodes[0].outputs[0].dtype == model.graph.inputs[0].dtype
    assert np.dtype(ml_dtypes.bfloat16) != model.graph.inputs[0].dtype


def test_operators_of_onnx_runtime() -> None:
    """Their outputs' types are not in files that its optimizer wrote, and everything behind them hangs on them."""
    model = parse(
        "g (int32[b, s] ids, float16[9, 8] table, float16[8] g, float16[8, 4] w, float16[4] c)"
        " => (float16[b, s, 4] y) {"
        " e = com.microsoft.EmbedLayerNormalization(ids, , table, table, , g, g)"
        " n, mean, dev, sum = com.microsoft.SkipLayerNormalization(e, e, g, g)"
        " h = MatMul(n, w)  a = com.microsoft.BiasGelu(h, c)  y = Neg(a) }"
    )
    infer_shapes(model)
    tensors = model.graph.tensors()
    for name, size in (("e", 8), ("n", 8), ("sum", 8), ("h", 4), ("a", 4)):
        assert (tensors[name].dtype, tensors[name].shape) == (np.float16, ["b", "s", size]), name
    assert [n.op for n in model.graph.nodes][:2] == ["EmbedLayerNormalization", "SkipLayerNormalization"]


def test_contradiction() -> None:
    model = parse("g (float[2, 3] x, int64[3, 5] w) => (float[n, m] y) { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match=r"not a valid ONNX graph: .*MatMul") as e:
        infer_shapes(model)
    assert "\n" not in str(e.value)
