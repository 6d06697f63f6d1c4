"""What TensorRT 8's parser gets: opset 17, no functions, INT8 operands as INT32 with the same bytes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphopt.engine.tensorrt8 import prepare, refine
from graphopt.errors import EngineError
from graphopt.passes.mant.cache_ops import CACHED_ATTENTION
from graphopt.passes.mixq import ops
from graphopt.passes.vq.ops import LINEAR

K, N, C = 64, 24, 16


def node(op: str, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    return helper.make_node(
        op, inputs, outputs, name=op.lower(), domain="graphopt", plugin_version="1", plugin_namespace="graphopt"
    )


def linear_model(
    rng: np.random.Generator, kind: int = TensorProto.FLOAT16, k: int = K, opset: int = 17, **more: Any
) -> onnx.ModelProto:
    """x -> MixQQuantize -> MixQLinear -> y, with ``more['nodes']`` behind them."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    wq = rng.integers(-127, 128, (N, k), np.int8)
    weights = {
        "idx": np.array([3, 17] + [-1] * (C - 2), np.int32),
        "sw": rng.uniform(0.1, 1, N).astype(np.float32),
        "wo": rng.standard_normal((N, C)).astype(dtype),
        "bias": rng.standard_normal(N).astype(dtype),
    }
    tensors = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    # The typed field, as exporters write small tensors.
    tensors.append(helper.make_tensor("wq", TensorProto.INT8, wq.shape, wq.ravel().tolist()))
    nodes = [
        node("MixQQuantize", ["x", "idx"], ["xq", "sx", "xo"]),
        node("MixQLinear", ["xq", "sx", "xo", "wq", "sw", "wo", "bias"], ["y"]),
        *more.get("nodes", ()),
    ]
    outputs = [helper.make_tensor_value_info("y", kind, ["m", N]), *more.get("outputs", ())]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, ["m", k])], outputs, tensors)
    functions = [spec.function(opset) for spec in ops.OPS if spec.name in ("MixQQuantize", "MixQLinear")]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("graphopt", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def attribute(proto: onnx.ModelProto, op: str, name: str) -> Any:
    found = next(n for n in proto.graph.node if n.op_type == op)
    return next((helper.get_attribute_value(a) for a in found.attribute if a.name == name), None)


def test_bodies_go_and_versions_become_those_of_tensorrt_8(rng: np.random.Generator) -> None:
    made = prepare(linear_model(rng)).proto
    assert not made.functions
    assert made.ir_version == 8
    assert {o.domain: o.version for o in made.opset_import} == {"": 17, "graphopt": 1}


def test_int8_weights_keep_their_bytes_as_a_quarter_of_int32(rng: np.random.Generator) -> None:
    proto = linear_model(rng)
    before = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "wq")
    after = next(numpy_helper.to_array(t) for t in prepare(proto).proto.graph.initializer if t.name == "wq")
    assert after.dtype == np.int32
    assert after.shape == (N, K // 4)
    assert np.array_equal(after.view(np.int8), before)


def test_external_int8_weights_stay_where_they_are(rng: np.random.Generator) -> None:
    proto = linear_model(rng)
    tensor = next(t for t in proto.graph.initializer if t.name == "wq")
    tensor.ClearField("int32_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.data")
    tensor.external_data.add(key="length", value=str(N * K))
    prepare(proto)
    assert {e.key: e.value for e in tensor.external_data} == {"location": "w.data", "length": str(N * K)}
    assert (tensor.data_type, list(tensor.dims)) == (TensorProto.INT32, [N, K // 4])


@pytest.mark.parametrize(("kind", "type_id"), [(TensorProto.FLOAT, 0), (TensorProto.FLOAT16, 1)])
def test_nodes_say_their_activation_type(rng: np.random.Generator, kind: int, type_id: int) -> None:
    made = prepare(linear_model(rng, kind)).proto
    assert [attribute(made, op, "type_id") for op in ("MixQQuantize", "MixQLinear")] == [type_id, type_id]


@pytest.mark.parametrize(("kind", "type_id"), [(TensorProto.FLOAT, 0), (TensorProto.FLOAT16, 1)])
def test_codebooks_in_float16_do_not_make_a_node_compute_in_it(
    rng: np.random.Generator, kind: int, type_id: int
) -> None:
    _, *constants = LINEAR.examples(rng, helper.tensor_dtype_to_np_dtype(kind))
    names = [p.name for p in LINEAR.inputs]
    tensors = [numpy_helper.from_array(a, name) for a, name in zip(constants, names[1:], strict=True)]
    x, y = (helper.make_tensor_value_info(name, kind, ["m", None]) for name in ("x", "y"))
    graph = helper.make_graph([node("VQLinear", names, ["y"])], "g", [x], [y], tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[LINEAR.function(17)], ir_version=8)
    assert attribute(prepare(model).proto, "VQLinear", "type_id") == type_id


def test_int8_graph_outputs_are_declared_as_int32(rng: np.random.Generator) -> None:
    outputs = [helper.make_tensor_value_info("xq", TensorProto.INT8, ["m", K])]
    made = prepare(linear_model(rng, outputs=outputs)).proto.graph.output[1].type.tensor_type
    assert made.elem_type == TensorProto.INT32
    assert made.shape.dim[1].dim_value == K // 4


def test_bfloat16_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(EngineError, match=r"'mixqquantize' \(MixQQuantize\) computes in bfloat16"):
        prepare(linear_model(rng, TensorProto.BFLOAT16))


def test_rows_that_are_no_multiple_of_4_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(EngineError, match=r"'wq' of node 'mixqlinear' has rows of 66 values.*multiple of 4"):
        prepare(linear_model(rng, k=66))


def mant_cache_model(capacity: int | str) -> onnx.ModelProto:
    """MANTCachedAttention of one head of 64 channels: words of its groups are two bytes a token."""
    spec, half = CACHED_ATTENTION, TensorProto.FLOAT16
    rows, window = {"k": 32, "k_meta": 2, "v": 32, "v_meta": 2}, {"v_window": [1, 1, 64, 64]}
    shapes: dict[str, list[int | str]] = {n: [1, 1, capacity, size] for n, size in rows.items()} | window
    shapes |= {"v_scale": [1, 1, 64], "sink": [1, 1, 2, 64]}
    shapes |= {"q": [1, "s", 1, 64], "cos": [1, "s", 64], "k_center": [1, 64], "start": [1]}
    alike = {"k": "q", "v": "q", "y": "q", "sin": "cos"}

    def port(name: str) -> onnx.ValueInfoProto:
        of = name.removeprefix("past_").removeprefix("present_")
        bytes_ = of in (*rows, *window) and name != of
        kind = TensorProto.INT8 if bytes_ else TensorProto.INT32 if name == "start" else half
        return helper.make_tensor_value_info(name, kind, shapes[of if name != of else alike.get(of, of)])

    inputs, outputs = ([p.name for p in side] for side in (spec.inputs, spec.outputs))
    graph = helper.make_graph(
        [node(spec.name, inputs, outputs)], "g", [port(n) for n in inputs], [port(n) for n in outputs]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[spec.function(17)], ir_version=8)


def test_words_of_a_cache_are_joined_in_pairs() -> None:
    graph = prepare(mant_cache_model(128)).proto.graph
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in (*graph.input, *graph.output)
        if i.type.tensor_type.elem_type == TensorProto.INT32
    }
    for side in ("past", "present"):
        assert shapes[f"{side}_k"] == shapes[f"{side}_v"] == [1, 1, 128, 8]
        assert shapes[f"{side}_k_meta"] == shapes[f"{side}_v_meta"] == [1, 1, 64, 1]
        assert shapes[f"{side}_v_window"] == [1, 1, 64, 16]


@pytest.mark.parametrize("capacity", ["c", 127])
def test_words_of_a_cache_without_pairs_are_refused(capacity: int | str) -> None:
    with pytest.raises(EngineError, match=r"'past_k_meta'.* has rows of 2 values.*--kv-capacity"):
        prepare(mant_cache_model(capacity))


def test_standard_nodes_may_not_read_packed_tensors(rng: np.random.Generator) -> None:
    cast = helper.make_node("Cast", ["xq"], ["z"], name="peek", to=TensorProto.FLOAT)
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["m", K])]
    with pytest.raises(EngineError, match=r"'xq' is read by node 'peek' \(Cast\)"):
        prepare(linear_model(rng, nodes=[cast], outputs=outputs))


def reduce_model(op: str, axes: list[str], opset: int = 18, **attributes: Any) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.array([1], np.int64), "axes")]
    graph = helper.make_graph([helper.make_node(op, ["x", *axes], ["y"], "n", **attributes)], "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_axes_of_reductions_become_an_attribute_again() -> None:
    made = prepare(reduce_model("ReduceMean", ["axes"], keepdims=0)).proto
    assert list(made.graph.node[0].input) == ["x"]
    assert attribute(made, "ReduceMean", "axes") == [1]
    x = np.array([[1.0, 2.0, 6.0], [0.5, -3.0, 40.0]], np.float32)
    (y,) = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})
    assert np.allclose(y, x.mean(1))


def test_nodes_of_later_opsets_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"node 'n' \(Gelu\) needs an opset later than 17"):
        prepare(reduce_model("Gelu", [], opset=20))


def test_computing_layers_of_float32_tensors_stay_in_float32(rng: np.random.Generator) -> None:
    square = helper.make_node("Cast", ["y"], ["wide"], name="widen", to=TensorProto.FLOAT)
    double = helper.make_node("Add", ["wide", "wide"], ["twice"], name="double")
    outputs = [helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["m", N])]
    float32 = prepare(linear_model(rng, nodes=[square, double], outputs=outputs)).float32
    assert {"wide", "twice"} <= float32
    assert "y" not in float32

    trt = SimpleNamespace(DataType=SimpleNamespace(FLOAT="float"))
    layers = [fake_layer("ELEMENTWISE", "twice"), fake_layer("ELEMENTWISE", "y"), fake_layer("SHAPE", "twice")]
    refine(trt, SimpleNamespace(num_layers=3, get_layer=layers.__getitem__), float32)
    assert [layer.precision for layer in layers] == ["float", None, None]


def fake_layer(kind: str, output: str) -> SimpleNamespace:
    return SimpleNamespace(
        type=SimpleNamespace(name=kind), num_outputs=1, precision=None,
        get_output=lambda i: SimpleNamespace(name=output), set_output_type=lambda i, t: None,
    )  # fmt: skip


def test_a_model_without_fp16_pins_nothing(rng: np.random.Generator) -> None:
    assert prepare(linear_model(rng, TensorProto.FLOAT)).float32 == frozenset()


@pytest.mark.parametrize("bounds", [{"start": 1}, {"end": 2}, {"start": -2, "end": -1}, {"start": 1, "end": 9}, {}])
def test_shape_without_its_bounds_is_sliced_to_the_same(bounds: dict[str, int]) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"], name="s", **bounds), helper.make_node("Identity", ["s"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 5])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.INT64, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    given = {"x": np.zeros((3, 4, 5), np.float32)}
    (want,) = ReferenceEvaluator(model).run(None, given)
    made = prepare(model).proto
    assert not any(n.attribute for n in made.graph.node if n.op_type == "Shape")
    np.testing.assert_array_equal(ReferenceEvaluator(made).run(None, given)[0], want)
    onnx.checker.check_model(made, full_check=True)


def test_ranges_get_scalars() -> None:
    nodes = [helper.make_node("Range", ["zero", "n", "zero_d"], ["y"], name="r")]
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    constants = [
        numpy_helper.from_array(np.array([2], np.int64), "zero"),
        numpy_helper.from_array(np.int64(3), "zero_d"),
    ]
    graph = helper.make_graph(
        nodes, "g", [n], [helper.make_tensor_value_info("y", TensorProto.INT64, [None])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = prepare(model).proto
    dims = {t.name: list(t.dims) for t in made.graph.initializer}
    assert [dims.get(name, []) for name in made.graph.node[0].input] == [[], [], []]
    (y,) = ReferenceEvaluator(made).run(None, {"n": np.int64(9)})
    np.testing.assert_array_equal(y, [2, 5, 8])
