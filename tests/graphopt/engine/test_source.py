"""Custom nodes counted wherever they are, and the files that a model consists of."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.engine.source import count_custom_ops, read
from graphopt.errors import ModelError

K = 64


def custom(op: str, name: str, plugin: bool = True, domain: str = "graphopt") -> onnx.NodeProto:
    attributes = {"plugin_namespace": "graphopt", "plugin_version": "1"} if plugin else {}
    return helper.make_node(op, ["x"], [f"{name}_out"], name=name, domain=domain, **attributes)


def test_counts_graph_subgraphs_and_every_call_of_a_function() -> None:
    branches = [
        helper.make_graph([custom("MixQGelu", f"branch_{b}")], b, [], [helper.make_empty_tensor_value_info("o")])
        for b in ("then", "else")
    ]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("graphopt", 1)]
    inner = helper.make_function("acme", "Inner", ["x"], ["y"], [custom("MixQLinear", "in_function")], imports)
    outer_nodes = [
        helper.make_node("Inner", ["x"], ["a"], domain="acme"),
        helper.make_node("Inner", ["x"], ["b"], domain="acme"),
    ]
    outer = helper.make_function("acme", "Outer", ["x"], ["y"], outer_nodes, imports)
    # The body of a plugin op is what its plugin replaces: nodes in there are not layers.
    body = helper.make_function("graphopt", "MixQQuantize", ["x"], ["y"], [custom("MixQGelu", "in_body")], imports)
    nodes = [
        custom("MixQQuantize", "first"),
        custom("MixQQuantize", "second"),
        custom("RMSNorm", "canonical", plugin=False),
        custom("MixQQuantize", "foreign", domain="acme"),
        helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Outer", ["x"], ["o1"], domain="acme"),
        helper.make_node("Outer", ["x"], ["o2"], domain="acme"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    found = count_custom_ops(helper.make_model(graph, functions=[inner, outer, body]))
    assert found.counts == {"MixQQuantize": 2, "MixQGelu": 2, "MixQLinear": 4}
    assert found.total == 8
    assert found.example == {"MixQQuantize": "first", "MixQGelu": "branch_else", "MixQLinear": "in_function"}


def test_source_names_digest_and_data_files(save_model: Callable[..., Path]) -> None:
    w = np.random.default_rng(1).standard_normal((K, 8)).astype(np.float32)
    path = save_model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, external=True)
    source, ops = read(path)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.path == str(path)
    (data,) = source.external_data
    assert (data.location, data.bytes) == ("model.onnx.data", (path.parent / "model.onnx.data").stat().st_size)
    assert data.bytes >= w.nbytes
    assert ops.total == 0


def test_data_of_constants_in_subgraphs_is_found(tmp_path: Path) -> None:
    (tmp_path / "side.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())

    def external(name: str) -> onnx.TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="side.bin")
        return tensor

    branches = []
    for name in ("then", "else"):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])
        branches.append(helper.make_graph([helper.make_node("Identity", [f"w_{name}"], [name])], name, [], [out], [
            external(f"w_{name}")
        ]))  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    source, _ = read(tmp_path / "m.onnx")
    assert [(d.location, d.bytes) for d in source.external_data] == [("side.bin", 16)]


def test_bad_files_are_refused_before_tensorrt_sees_them(save_model: Callable[..., Path], tmp_path: Path) -> None:
    w = np.ones((K, 8), np.float32)
    path = save_model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match="is missing"):
        read(path)
    with pytest.raises(ModelError, match="does not exist"):
        read(tmp_path / "gone.onnx")
