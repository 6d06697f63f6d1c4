"""Models of opsets 11 to 14: written as opset 15 they compute what they computed, in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.ir.model import MIN_OPSET
from graphopt.ir.upgrade import OLDEST_OPSET
from tests.support.arrays import activations, weight

SHAPE = (2, 3, 4, 6)
OLD = range(OLDEST_OPSET, MIN_OPSET)
NODE = helper.make_node


def model(nodes: list[onnx.NodeProto], opset: int, rank: bool = True, out: int = 4, **graph: object) -> onnx.ModelProto:
    """A model from x float32 (2, 3, 4, 6) to y of rank ``out``; without ``rank``, inference cannot know that of x."""
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [None])
    inputs = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, SHAPE), *([] if rank else [sizes])]
    first = [NODE("Identity", ["x0"], ["x"]) if rank else NODE("Reshape", ["x0", "sizes"], ["x"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * out)]
    made = helper.make_graph([*first, *nodes], "g", inputs, outputs, **graph)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def upgraded(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    """Save ``proto``, load and save it through our reader, and hold both files' outputs equal."""
    onnx.save(proto, tmp_path / "old.onnx")
    ir.save(ir.load(tmp_path / "old.onnx"), tmp_path / "new.onnx")
    saved = onnx.load(tmp_path / "new.onnx")
    onnx.checker.check_model(saved, full_check=True)
    assert [o.version for o in saved.opset_import if not o.domain] == [MIN_OPSET]
    feed = {"x0": activations(np.random.default_rng(0), 36, 4).reshape(SHAPE).astype(np.float32)}
    if len(proto.graph.input) > 1:
        feed["sizes"] = np.array(SHAPE, np.int64)
    old, new = (run(tmp_path / f"{name}.onnx", feed) for name in ("old", "new"))
    np.testing.assert_array_equal(new, old)
    return tmp_path / "new.onnx"


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return np.asarray(ort.InferenceSession(path, options).run(None, feed)[0])


@pytest.mark.parametrize("rank", [True, False], ids=["rank", "no_rank"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax(op: str, axis: int | None, rank: bool, tmp_path: Path) -> None:
    node = NODE(op, ["x"], ["y"], **({} if axis is None else {"axis": axis}))
    saved = onnx.load(upgraded(model([node], 12, rank), tmp_path))
    last = axis == -1 or (axis == 3 and rank)
    assert ("Flatten" not in {n.op_type for n in saved.graph.node}) == last, "attention has its plain softmax"


@pytest.mark.parametrize("opset", OLD)
def test_axes(opset: int, tmp_path: Path) -> None:
    attributes = {"axes": [0, 3]}, {"axes": [1]}, {"split": [1, 2]}
    if opset < 13:
        nodes = [
            NODE("Unsqueeze", ["x"], ["a"], **attributes[0]),
            NODE("ReduceSum", ["a"], ["b"], keepdims=1, **attributes[1]),
            NODE("Squeeze", ["b"], ["c"]),
            NODE("Split", ["x"], ["d", "e"], axis=1, **attributes[2]),
            NODE("ReduceSum", ["c"], ["f"], keepdims=0),
            NODE("Squeeze", ["d"], ["h"], **attributes[1]),
            NODE("ReduceSum", ["e"], ["i"], keepdims=0, **attributes[1]),
            NODE("Add", ["h", "f"], ["j"]),
            NODE("Add", ["i", "j"], ["y"]),
        ]
    else:
        nodes = [NODE("Relu", ["x"], ["y"])]
    upgraded(model(nodes, opset, out=3 if opset < 13 else 4), tmp_path)


def test_dropout_and_what_did_not_change(tmp_path: Path) -> None:
    nodes = [
        NODE("Dropout", ["x"], ["a"], ratio=0.3),
        NODE("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], epsilon=1e-3, momentum=0.8),
        NODE("Clip", ["b", "low"], ["y"]),
    ]
    low = numpy_helper.from_array(np.float32(-0.5), "low")
    scale = numpy_helper.from_array(np.array([0.5, 1.5, 3], np.float32), "s")
    upgraded(model(nodes, 11, initializer=[low, scale]), tmp_path)


def test_inside_a_branch(tmp_path: Path) -> None:
    def branch(axis: int) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("y_", TensorProto.FLOAT, [None] * 4)
        return helper.make_graph([NODE("Softmax", ["x"], ["y_"], axis=axis)], "b", [], [out])

    yes = numpy_helper.from_array(np.array(True), "yes")
    node = NODE("If", ["yes"], ["y"], then_branch=branch(1), else_branch=branch(3))
    upgraded(model([node], 11, initializer=[yes]), tmp_path)


def test_weights_stay_on_disk(tmp_path: Path, rng: np.random.Generator) -> None:
    w = numpy_helper.from_array(weight(rng, 6, 512), "w")
    proto = model([NODE("MatMul", ["x", "w"], ["a"]), NODE("Softmax", ["a"], ["y"], axis=-1)], 12, initializer=[w])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = ir.load(tmp_path / "m.onnx")
    assert loaded.opset == MIN_OPSET
    constant = next(t for t in loaded.graph.tensors().values() if t.name == "w")
    assert type(constant._values).__name__ == "DiskValues"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("node", "culprit"),
    [
        (NODE("BatchNormalization", ["x"] + ["s"] * 4, ["y", "m", "v"], name="bn"), "'bn' (BatchNormalization) has"),
        (
            NODE("Resize", ["x", "r", "s"], ["y"], coordinate_transformation_mode="tf_half_pixel_for_nn"),
            "'y' (Resize) has the mode tf_half_pixel_for_nn",
        ),
    ],
    ids=["training", "resize"],
)
def test_what_opset_15_cannot_say(node: onnx.NodeProto, culprit: str, tmp_path: Path) -> None:
    values = [numpy_helper.from_array(np.ones(n, np.float32), name) for name, n in (("s", 4), ("r", 8))]
    onnx.save(model([node], 12, initializer=values), tmp_path / "m.onnx")
    with pytest.raises(ModelError) as refused:
        ir.load(tmp_path / "m.onnx")
    assert str(refused.value).startswith(f"{tmp_path / 'm.onnx'}: node {culprit}")
    assert "\n" not in str(refused.value)
