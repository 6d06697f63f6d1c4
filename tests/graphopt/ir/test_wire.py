"""Parsing without inline weights: the rest of the message is what protobuf reads."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir import wire
from graphopt.ir.weights import INLINE_BYTES, DiskValues, external_info
from tests.support.arrays import weight


def model(rng: np.random.Generator, sizes: list[int]) -> onnx.ModelProto:
    """Weights of ``sizes`` bytes as initializers, attributes, in a subgraph and in a function, in turn."""
    tensors = [
        numpy_helper.from_array(rng.integers(-128, 128, n).astype(np.int8), f"t{i}") for i, n in enumerate(sizes)
    ]
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    inner = helper.make_graph(constants[2::4], "inner", [], [], tensors[3::4])
    nodes = [*constants[0::4], helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "g", [], [helper.make_empty_tensor_value_info("y")], tensors[1::4])
    function = helper.make_function("d", "f", [], ["t0"], constants[0:1], [helper.make_opsetid("", 18)])
    return helper.make_model(graph, functions=[function], doc_string="x" * 3000)


@given(
    sizes=st.lists(st.sampled_from([0, 1, INLINE_BYTES, INLINE_BYTES + 1, 5000]), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_same_message_but_for_long_raw_data(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("wire") / "m.onnx"
    expected = model(np.random.default_rng(seed), sizes)
    path.write_bytes(expected.SerializeToString())
    lean = wire.read(path)
    for got, full in zip(_tensors(lean), _tensors(expected), strict=True):
        assert (got.data_location == TensorProto.EXTERNAL) == (len(full.raw_data) > INLINE_BYTES)
        if got.data_location == TensorProto.EXTERNAL:
            location, offset, length = external_info(got)
            assert (location, length) == (str(path), len(full.raw_data))
            assert path.read_bytes()[offset : offset + length] == full.raw_data
            assert DiskValues(got).load().tobytes() == full.raw_data
            got.CopyFrom(full)
    assert lean == expected


def test_tensor_that_says_its_data_is_inline(tmp_path: Path, rng: np.random.Generator) -> None:
    """Some exporters write data_location = DEFAULT after the raw data."""
    proto = model(rng, [5000, 5000])
    proto.graph.initializer[0].data_location = TensorProto.DEFAULT
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert wire.read(tmp_path / "m.onnx").graph.initializer[0].data_location == TensorProto.EXTERNAL


def test_weights_are_not_in_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    proto = model(rng, [1_000_000] * 4)
    proto.doc_string = ""
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert wire.read(tmp_path / "m.onnx").ByteSize() < 3000


@pytest.mark.parametrize(
    "content", [b"", b"\x0b", b"\x3a\xff", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x09\x00"]
)
def test_malformed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(DecodeError):
        wire.read(tmp_path / "m.onnx")


def test_numbers_longer_than_one_byte(tmp_path: Path, rng: np.random.Generator) -> None:
    proto = helper.make_model(helper.make_graph([], "g" * 200_000, [], []), model_version=2**63 - 1)
    proto.graph.initializer.append(numpy_helper.from_array(weight(rng, 300, 300), "w" * 300))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    lean = wire.read(tmp_path / "m.onnx")
    assert (lean.model_version, lean.graph.name) == (2**63 - 1, "g" * 200_000)


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    graphs = [proto.graph, proto.graph.node[-1].attribute[0].g, proto.graph.node[-1].attribute[1].g]
    nodes = [n for g in graphs for n in g.node] + [n for f in proto.functions for n in f.node]
    return [t for g in graphs for t in g.initializer] + [a.t for n in nodes for a in n.attribute if a.HasField("t")]
