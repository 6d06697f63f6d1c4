"""Round trips: what is loaded and saved is the same model, byte for byte, and the weights never leave the disk."""

import pathlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.ir import text, weights
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.weights import DiskValues
from tests.support.arrays import activations, of_type, weight
from tests.support.runtime import run_ort

ToModel = Callable[..., ir.Model]
TYPES = sorted(set(helper.get_all_tensor_dtypes()) - {TensorProto.UNDEFINED})


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    tensors: dict[str, np.ndarray] | None = None,
    **more: object,
) -> onnx.ModelProto:
    """Return a float32 model at opset 18; shapes of outputs as the standard operators imply them, else scalars."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (tensors or {}).items()],
    )
    imports = {"": 18} | {n.domain: 3 for n in nodes if n.domain}
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)
    for output, inferred in zip(model.graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True):
        output.CopyFrom(inferred)
        output.type.tensor_type.shape.SetInParent()
    return model


def linear_model(rng: np.random.Generator, k: int = 48, n: int = 32) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"), helper.make_node("Add", ["h", "b"], ["y"])]
    return graph_of(nodes, {"x": ["rows", k]}, ["y"], {"w": weight(rng, k, n), "b": weight(rng, n)})


def stored(path: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def saved_again(model: ir.Model, folder: Path, **options: object) -> onnx.ModelProto:
    """Save, check with onnx.checker, and return the result with its weights."""
    path = folder / "again.onnx"
    ir.save(model, path, **options)
    onnx.checker.check_model(str(path))
    return onnx.load(path)


@given(
    data_type=st.sampled_from(TYPES),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), max_size=3).map(tuple),
    external=st.booleans(),
    typed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_dtype_and_shape_survives(
    tmp_path_factory: pytest.TempPathFactory,
    data_type: int,
    shape: tuple[int, ...],
    external: bool,
    typed: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    array = of_type(np.random.default_rng(seed), data_type, shape)
    tensor = numpy_helper.from_array(array, "t")
    if typed and data_type in (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64):
        tensor = helper.make_tensor("t", data_type, shape, array.reshape(-1).tolist())
    proto = graph_of([helper.make_node("Probe", ["t"], ["y"], domain="test")], {}, ["y"])
    proto.graph.initializer.append(tensor)
    onnx.save(proto, folder / "m.onnx")
    model = ir.load(folder / "m.onnx")
    read = weights.read(model.graph.nodes[0].inputs[0])
    assert read.shape == shape
    assert weights.onnx_dtype(read.dtype) == data_type
    result = saved_again(model, folder, external_data=external)
    (back,) = result.graph.initializer
    assert (back.name, back.data_type, tuple(back.dims)) == ("t", data_type, shape)
    if data_type == TensorProto.STRING:
        assert numpy_helper.to_array(back).tolist() == array.tolist()
    else:
        assert numpy_helper.to_array(back).tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("data_type", [TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16, TensorProto.FLOAT])
@pytest.mark.parametrize("count", [5, 3001])
def test_arrays_that_passes_make_are_written(
    tmp_path: Path, rng: np.random.Generator, data_type: int, count: int, external: bool
) -> None:
    model = ir.Model(gs.Graph(opset=21, name="made"))
    array = of_type(rng, data_type, (count,))
    constant = model.store.put("t", array)
    y = gs.Variable("y", np.float32, ["n"])
    model.graph.nodes.append(gs.Node("Probe", "p", inputs=[constant], outputs=[y], domain="test"))
    model.graph.outputs = [y]
    assert weights.nbytes(constant) == len(numpy_helper.from_array(array).raw_data)
    (back,) = saved_again(model, tmp_path, external_data=external).graph.initializer
    assert back.data_type == data_type
    assert numpy_helper.to_array(back).tobytes() == array.tobytes()


@pytest.mark.parametrize("external", [True, False])
def test_inline_weights_stay_in_the_file(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path, external: bool
) -> None:
    proto = linear_model(rng)
    model = to_model(proto)
    constants = model.graph.nodes[0].inputs[1], model.graph.nodes[1].inputs[1]
    assert [isinstance(c._values, DiskValues) for c in constants] == [True, False]
    array = weights.read(constants[0])
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, numpy_helper.to_array(proto.graph.initializer[0]))
    result = saved_again(model, tmp_path, external_data=external)
    feeds = {"x": activations(rng, 5, 48)}
    np.testing.assert_array_equal(run_ort(result, feeds)[0], run_ort(proto, feeds)[0])


def test_external_data_is_kept_lazily_byte_for_byte(rng: np.random.Generator, tmp_path: Path) -> None:
    proto = linear_model(rng, 256, 128)
    source = tmp_path / "a"
    source.mkdir()
    onnx.save(proto, source / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = ir.load(source / "m.onnx")
    assert isinstance(model.graph.nodes[0].inputs[1]._values, DiskValues)
    target = tmp_path / "b"
    target.mkdir()
    written = ir.save(model, target / "m.onnx", external_data=True)
    assert written == [target / "m.onnx", target / "m.onnx.data"]
    assert isinstance(model.graph.nodes[0].inputs[1]._values, DiskValues), "saving must not read weights into the graph"
    assert stored(target / "m.onnx") == stored(source / "m.onnx")
    assert sorted(p.name for p in target.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_data_file_is_chosen_by_size(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = to_model(linear_model(rng))
    assert ir.save(model, tmp_path / "a.onnx") == [tmp_path / "a.onnx"]
    monkeypatch.setattr("graphopt.ir.io.SINGLE_FILE_BYTES", 4096)
    assert ir.save(model, tmp_path / "b.onnx") == [tmp_path / "b.onnx", tmp_path / "b.onnx.data"]


def test_tensors_with_the_same_bytes_share_them(rng: np.random.Generator, tmp_path: Path) -> None:
    proto = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])],
        {"x": [1, 64]},
        ["y"],
        {"w": weight(rng, 64, 64), "v": weight(rng, 64, 64)},
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    lean = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    del lean.graph.initializer[1].external_data[:]
    lean.graph.initializer[1].external_data.extend(lean.graph.initializer[0].external_data)
    onnx.save(lean, tmp_path / "m.onnx")
    _, data = ir.save(ir.load(tmp_path / "m.onnx"), tmp_path / "n.onnx", external_data=True)
    assert data.stat().st_size == 64 * 64 * 4
    assert stored(tmp_path / "n.onnx") == stored(tmp_path / "m.onnx")


def conditional(rng: np.random.Generator) -> onnx.ModelProto:
    """If with a weight in each branch (of the same name), one of the outer graph in both, and one in a nested If."""

    def branch(name: str, nested: bool) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["x", "own"], [f"{name}_a"]),
            helper.make_node("Add", [f"{name}_a", "outer"], [f"{name}_y"]),
        ]
        if nested:
            deep = helper.make_graph(
                [helper.make_node("Mul", [f"{name}_a", "deep_w"], ["deep_y"])],
                "deep",
                [],
                [helper.make_empty_tensor_value_info("deep_y")],
                [numpy_helper.from_array(weight(rng, 32, 32), "deep_w")],
            )
            other = helper.make_graph(
                [helper.make_node("Sub", [f"{name}_a", "outer"], ["o_y"])],
                "o",
                [],
                [helper.make_empty_tensor_value_info("o_y")],
            )
            nodes[1] = helper.make_node("If", ["c"], [f"{name}_y"], then_branch=deep, else_branch=other)
        own = numpy_helper.from_array(weight(rng, 32, 32), "own")
        return helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(f"{name}_y")], [own])

    node = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=branch("then", True), else_branch=branch("else", False)
    )
    proto = graph_of([node], {"x": [32, 32]}, ["y"], {"outer": weight(rng, 32, 32)})
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return proto


def loop(rng: np.random.Generator) -> onnx.ModelProto:
    """Loop whose body has a weight, carries a state and scans an output."""
    nodes = [
        helper.make_node("MatMul", ["state", "w"], ["next"]),
        helper.make_node("Identity", ["go"], ["still"]),
        helper.make_node("Identity", ["next"], ["seen"]),
    ]
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [4, 32]),
    ]
    outputs = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, [4, 32]),
        helper.make_tensor_value_info("seen", TensorProto.FLOAT, [4, 32]),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs, [numpy_helper.from_array(weight(rng, 32, 32), "w")])
    node = helper.make_node("Loop", ["trips", "", "x"], ["y", "all"], body=body)
    return graph_of([node], {"x": [4, 32]}, ["y", "all"], {"trips": np.array(3, np.int64)})


def scan(rng: np.random.Generator) -> onnx.ModelProto:
    """Scan whose body has a weight."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["row", "w"], ["m"]),
        helper.make_node("Add", ["acc", "m"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["part"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [info("acc", TensorProto.FLOAT, [32]), info("row", TensorProto.FLOAT, [32])],
        [info("sum", TensorProto.FLOAT, [32]), info("part", TensorProto.FLOAT, [32])],
        [numpy_helper.from_array(weight(rng, 32, 32), "w")],
    )
    node = helper.make_node("Scan", ["zero", "x"], ["y", "all"], body=body, num_scan_inputs=1)
    return graph_of([node], {"x": [5, 32]}, ["y", "all"], {"zero": weight(rng, 32)})


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("build", [conditional, loop, scan])
def test_subgraphs_survive(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path, build: Callable[..., onnx.ModelProto], external: bool
) -> None:
    proto = build(rng)
    model = to_model(proto)
    result = saved_again(model, tmp_path, external_data=external)
    assert text.dump(ir.load(tmp_path / "again.onnx")) == text.dump(model)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    for condition in (True, False):
        feeds = {"x": activations(rng, *shape)} | ({"c": np.array(condition)} if build is conditional else {})
        for got, expected in zip(run_ort(tmp_path / "again.onnx", feeds), run_ort(proto, feeds), strict=True):
            np.testing.assert_array_equal(got, expected)
    outer = {t.name for t in result.graph.initializer}
    assert outer == {t.name for t in proto.graph.initializer}, "a weight moved between the main graph and a subgraph"


def test_constant_of_the_outer_graph_is_written_once(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path
) -> None:
    saved_again(to_model(conditional(rng)), tmp_path, external_data=True)
    # own (twice), outer and deep_w, each rounded up to the alignment of 4096 bytes that it already has.
    assert (tmp_path / "again.onnx.data").stat().st_size == 4 * 32 * 32 * 4


def test_functions_domains_and_metadata_survive(rng: np.random.Generator, to_model: ToModel, tmp_path: Path) -> None:
    function = helper.make_function(
        "mine",
        "Scale",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight(rng, 600))),
            helper.make_node("Mul", ["a", "w"], ["b"]),
        ],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("Scale", ["x"], ["h"], domain="mine"),
        helper.make_node("Mystery", ["h"], ["y"], domain="alien", flavour="sour"),
    ]
    proto = graph_of(
        nodes,
        {"x": [2, 600]},
        ["y"],
        producer_name="exporter",
        producer_version="9",
        doc_string="words",
        model_version=7,
        domain="org.example",
    )
    proto.functions.append(function)
    proto.metadata_props.add(key="licence", value="MIT")
    proto.graph.metadata_props.add(key="graph", value="meta")
    proto.graph.doc_string = "about the graph"
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model.layers.0']")
    proto.graph.node[0].doc_string = "a node"
    proto.graph.node[1].overload = "second"
    model = to_model(proto)
    assert model.graph.nodes[0].metadata == {"pkg.torch.onnx.name_scopes": "['', 'model.layers.0']"}
    for external in (True, False):
        result = saved_again(model, tmp_path, external_data=external)
        expected = onnx.ModelProto()
        expected.CopyFrom(proto)
        assert result.functions[0].node[0].attribute[0].t.raw_data == function.node[0].attribute[0].t.raw_data
        result.functions[0].node[0].attribute[0].t.CopyFrom(function.node[0].attribute[0].t)
        assert result == expected


def test_attributes_of_every_kind_survive(rng: np.random.Generator, to_model: ToModel, tmp_path: Path) -> None:
    node = helper.make_node("Everything", ["x", "", "x"], ["y", "", "z"], domain="test", name="n")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [2], [1.5, -2.0]),
        helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]),
        [4],
    )
    for name, value in {
        "f": 1.5, "whole": 2.0, "i": -(2**62), "s": "naïve", "raw": b"\xff\x00\xfe", "fs": [1.0, 2.0], "is": [3, -4],
        "ss": ["a", "b"], "raws": [b"\xff", b"ok"], "t": numpy_helper.from_array(weight(rng, 3), "inner"),
        "ts": [numpy_helper.from_array(weight(rng, 2), "one"), numpy_helper.from_array(weight(rng, 1), "two")],
        "st": sparse, "tp": helper.make_tensor_type_proto(TensorProto.FLOAT, [1, "n"]),
        "big": numpy_helper.from_array(weight(rng, 1000), "big"),
    }.items():  # fmt: skip
        node.attribute.append(helper.make_attribute(name, value))
    for kind in ("FLOATS", "INTS", "STRINGS"):
        node.attribute.append(
            onnx.AttributeProto(name=f"no_{kind}", type=onnx.AttributeProto.AttributeType.Value(kind))
        )
    proto = graph_of([node], {"x": [2]}, ["y", "z"])
    model = to_model(proto)
    assert model.graph.nodes[0].attrs["no_INTS"] == []
    for external in (True, False):
        result = saved_again(model, tmp_path, external_data=external)
        before = {a.name: a for a in proto.graph.node[0].attribute}
        after = {a.name: a for a in result.graph.node[0].attribute}
        assert after.keys() == before.keys()
        for name, attribute in before.items():
            assert after[name].type == attribute.type, name
            if name != "big":
                assert after[name] == attribute
        assert after["big"].t.raw_data == before["big"].t.raw_data
        assert list(result.graph.node[0].input) == ["x", "", "x"]
        assert list(result.graph.node[0].output) == ["y", "", "z"]


def test_list_of_graphs_is_refused(to_model: ToModel) -> None:
    node = helper.make_node("Odd", ["x"], ["y"], domain="test", name="odd")
    node.attribute.append(helper.make_attribute("branches", [helper.make_graph([], "g", [], [])]))
    with pytest.raises(ir.io.ModelError, match=r"model.onnx: node 'odd' \(Odd\) has a list of graphs .* 'branches'"):
        to_model(graph_of([node], {"x": [2]}, ["y"]))


def test_sequences_optionals_and_unknown_shapes_survive(to_model: ToModel, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["seq"]),
        helper.make_node("Optional", ["x"], ["opt"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Relu", ["scalar"], ["r"]),
    ]
    proto = graph_of(nodes, {"x": ["n", 4], "scalar": []}, ["y", "r"])
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 4])
    proto.graph.output.append(helper.make_value_info("opt", helper.make_optional_type_proto(element)))
    proto.graph.value_info.append(helper.make_value_info("seq", helper.make_sequence_type_proto(element)))
    result = saved_again(to_model(proto), tmp_path)
    assert list(result.graph.output) == list(proto.graph.output)
    assert list(result.graph.input) == list(proto.graph.input)
    assert list(result.graph.value_info) == list(proto.graph.value_info)


def test_sparse_initializer_survives_and_reads_dense(to_model: ToModel, tmp_path: Path) -> None:
    values = helper.make_tensor(
        "w", TensorProto.FLOAT16, [3], np.array([1.5, -2, 8], np.float16).view(np.uint16), raw=False
    )
    values = numpy_helper.from_array(np.array([1.5, -2, 8], np.float16), "w")
    for indices in (
        helper.make_tensor("i", TensorProto.INT64, [3], [1, 4, 5]),
        helper.make_tensor("i", TensorProto.INT64, [3, 2], [0, 1, 1, 1, 1, 2]),
    ):
        proto = graph_of([helper.make_node("Probe", ["x", "w"], ["y"], domain="test")], {"x": [3]}, ["y"])
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
        model = to_model(proto)
        constant = model.graph.nodes[0].inputs[1]
        dense = weights.read(constant)
        assert dense.dtype == np.float16
        np.testing.assert_array_equal(dense, [[0, 1.5, 0], [0, -2, 8]])
        assert weights.nbytes(constant) == 3 * 2 + (3 if len(indices.dims) == 1 else 6) * 8
        result = saved_again(model, tmp_path)
        assert list(result.graph.sparse_initializer) == list(proto.graph.sparse_initializer)
        assert not result.graph.initializer


@pytest.mark.parametrize("imports", [[("ai.onnx", 18)], [("", 18), ("ai.onnx", 18)], [("", 18)]])
def test_the_standard_domain_may_be_spelled_out(
    imports: list[tuple[str, int]], to_model: ToModel, tmp_path: Path
) -> None:
    proto = graph_of([helper.make_node("Relu", ["x"], ["m"]), helper.make_node("Neg", ["m"], ["y"])], {"x": [2]}, ["y"])
    proto.graph.node[0].domain = "ai.onnx"
    del proto.opset_import[:]
    proto.opset_import.extend([helper.make_opsetid("ml", 3), *(helper.make_opsetid(*i) for i in imports)])
    model = to_model(proto)
    infer_shapes(model)
    assert list(model.graph.nodes[0].outputs[0].shape) == [2]
    result = saved_again(model, tmp_path)
    assert [(o.domain, o.version) for o in result.opset_import] == [("ml", 3), ("", 18)]
    assert result.graph.node[0].domain == ""


def test_node_names_may_repeat_or_be_missing(
    to_model: ToModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="same"),
        helper.make_node("Neg", ["a"], ["b"], name="same"),
        helper.make_node("Abs", ["b"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": [2]}, ["y"])
    result = saved_again(to_model(proto), tmp_path)
    assert [n.name for n in result.graph.node] == ["same", "same", ""]
    assert capsys.readouterr() == ("", ""), "standard output belongs to results"


def test_nothing_is_printed_for_types_that_numpy_lacks(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = graph_of(
        [helper.make_node("Probe", ["w"], ["y"], domain="test")],
        {},
        ["y"],
        {"w": weight(rng, 40, 40, dtype=ml_dtypes.bfloat16)},
    )
    saved_again(to_model(proto), tmp_path)
    assert capsys.readouterr() == ("", "")


def test_constant_that_is_an_output_survives(rng: np.random.Generator, to_model: ToModel, tmp_path: Path) -> None:
    proto = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y", "w"], {"w": weight(rng, 30, 30)})
    result = saved_again(to_model(proto), tmp_path)
    assert [o.name for o in result.graph.output] == ["y", "w"]
    assert result.graph.initializer[0].raw_data == proto.graph.initializer[0].raw_data


def test_initializer_that_is_an_input_becomes_a_weight(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path
) -> None:
    proto = linear_model(rng)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [48, 32]))
    result = saved_again(to_model(proto), tmp_path)
    assert [i.name for i in result.graph.input] == ["x"]


@pytest.mark.parametrize("external", [True, False, None])
@pytest.mark.parametrize("source_external", [True, False])
def test_saving_over_the_source_keeps_model_and_file_good(
    rng: np.random.Generator, tmp_path: Path, source_external: bool, external: bool | None
) -> None:
    proto = graph_of(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"h{i}"]) for i in range(3)]
        + [helper.make_node("Sum", ["h0", "h1", "h2"], ["y"])],
        {"x": [1, 64]},
        ["y"],
        {f"w{i}": weight(rng, 64, 48) for i in range(3)},
    )
    path = tmp_path / "m.onnx"
    expected = {t.name: numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer}
    onnx.save(proto, path, save_as_external_data=source_external, location="m.onnx.data", size_threshold=0)
    model = ir.load(path)
    # Other offsets than in the source, so that a stale reference reads something else.
    model.graph.nodes[:3] = [model.graph.nodes[i] for i in (2, 0, 1)]
    for target in (path, path, tmp_path / "elsewhere.onnx"):
        ir.save(model, target, external_data=external)
        assert stored(target) == expected
        for node in model.graph.nodes[:3]:
            constant = node.inputs[1]
            assert weights.read(constant).tobytes() == expected[constant.name]


def test_text_is_the_same_after_a_round_trip_of_exporters_models(tmp_path: Path) -> None:
    folder = pathlib.Path(__file__).parents[2] / "fixtures" / "exporters"
    models = sorted(folder.glob("*.onnx"))
    assert models
    for path in models:
        model = ir.load(path)
        before = onnx.load(path)
        after = onnx.load(ir.save(model, tmp_path / "m.onnx", external_data=True)[0])
        assert text.dump(ir.load(tmp_path / "m.onnx")) == text.dump(model), path.name
        read = {name for node in before.graph.node for name in node.input}
        kept = {t.name: numpy_helper.to_array(t).tobytes() for t in before.graph.initializer if t.name in read}
        assert {t.name: numpy_helper.to_array(t).tobytes() for t in after.graph.initializer} == kept, path.name
        assert list(after.graph.node) == list(before.graph.node), path.name
