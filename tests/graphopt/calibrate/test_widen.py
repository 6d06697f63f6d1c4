"""Bfloat16 models computed in float32, in ONNX Runtime."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import compile, ir
from graphopt.calibrate import feeds
from graphopt.calibrate.collect import collect
from graphopt.calibrate.widen import widen
from graphopt.core.statistics import Statistics
from graphopt.models.llama import build_llama
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from tests.support.arrays import activations, weight

CONFIG = llama_config(
    hidden_size=64, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, vocab_size=64, head_dim=32
)
BF16, NODE = TensorProto.BFLOAT16, helper.make_node
#: A bfloat16 is rounded by half of 2^-7; weights and embedding are, and the few products between do not amplify it.
ROUNDING = 2.0**-6


def stored(array: np.ndarray, name: str = "") -> TensorProto:
    return numpy_helper.from_array(array.astype(ml_dtypes.bfloat16), name)


def test_every_place_that_a_type_can_be_in(rng: np.random.Generator) -> None:
    x, w = activations(rng, 5, 8).astype(ml_dtypes.bfloat16), weight(rng, 8, 8).astype(ml_dtypes.bfloat16)
    half = NODE("Constant", [], ["half"], value=stored(np.array(0.5)))
    branches = [
        helper.make_graph(
            [half, NODE("Mul", ["p", "half"], ["b"]), NODE("Cast", ["b"], ["c"], to=BF16)],
            "branch",
            [],
            [helper.make_tensor_value_info("c", BF16, [5, 8])],
        )
        for _ in range(2)
    ]
    nodes = [
        NODE("MatMul", ["x", "w"], ["p"]),
        NODE("If", ["yes"], ["q"], then_branch=branches[0], else_branch=branches[1]),
        NODE("Shape", ["x"], ["shape"]),
        NODE("ConstantOfShape", ["shape"], ["thirds"], value=stored(np.array([1 / 3]))),
        NODE("Add", ["q", "thirds"], ["r"]),
        NODE("Cast", ["r"], ["r32"], to=TensorProto.FLOAT),
        NODE("Cast", ["r32"], ["back"], to=BF16),
        NODE("CastLike", ["half32", "back"], ["h"]),
        NODE("Add", ["back", "h"], ["y"]),
    ]
    constants = [
        stored(w, "w"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.float32(0.5), "half32"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", BF16, [5, 8])],
        [helper.make_tensor_value_info("y", BF16, [5, 8])],
        constants,
    )
    proto = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(proto, full_check=True)
    widen(proto)
    onnx.checker.check_model(proto, full_check=True)
    wide = x.astype(np.float32)
    (y,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": wide})
    q = (wide @ w.astype(np.float32) * 0.5).astype(ml_dtypes.bfloat16).astype(np.float32)
    r = q + np.float32(np.array(1 / 3).astype(ml_dtypes.bfloat16))
    expected = r.astype(ml_dtypes.bfloat16).astype(np.float32) + 0.5
    # The order of the sums of a product may move a value that lies between two bfloat16 to the other one.
    np.testing.assert_allclose(y, expected, rtol=2 * 2.0**-8, atol=1e-5)
    assert np.mean(y == expected) > 0.9


def test_a_bfloat16_decoder_is_calibrated(tmp_path: Path) -> None:
    def statistics(dtype: str) -> Statistics:
        path = tmp_path / f"{dtype}.onnx"
        build_llama(CONFIG, RandomWeights(CONFIG, 0, outliers=2), path, dtype=dtype)
        model = ir.load(path)
        data = list(feeds.random(feeds.declared(model), samples=2, length=16, seed=3))
        compile.canonicalize(model)
        return collect(model, data, threads=1)

    wide, narrow = statistics("float32"), statistics("bfloat16")
    assert list(narrow.linears) == list(wide.linears)
    for name, entry in narrow.linears.items():
        expected = wide.linears[name]
        np.testing.assert_allclose(entry.absmax, expected.absmax, rtol=0, atol=ROUNDING * expected.absmax.max())


def test_weights_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    build_llama(CONFIG, RandomWeights(CONFIG, 0), path, dtype="bfloat16")
    proto = onnx.load(path, load_external_data=False)
    before = {t.name: t.SerializeToString() for t in proto.graph.initializer}
    widen(proto)
    for tensor in proto.graph.initializer:
        name = tensor.name.removeprefix("graphopt_stored:")
        tensor.name = name
        assert tensor.SerializeToString() == before[name]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_types_stay(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    build_llama(CONFIG, RandomWeights(CONFIG, 0), path, dtype=dtype)
    proto = onnx.load(path, load_external_data=False)
    before = proto.SerializeToString(deterministic=True)
    widen(proto)
    assert proto.SerializeToString(deterministic=True) == before
