"""MatMulNBits and GatherBlockQuantized: the weight written out equals the one that ONNX Runtime computes with."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.core.report import Report
from graphopt.passes.canonicalize import OPS, block_quantized
from tests.passes.canonicalize.spelling import inferred
from tests.support.arrays import activations
from tests.support.runtime import run_ort

RULES = inferred(block_quantized.RULES)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """(..., values) -> (..., bytes), low bits first, padded with zeros."""
    per_byte = 8 // bits
    padding = -codes.shape[-1] % per_byte
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)]).astype(np.uint16)
    grouped = codes.reshape(*codes.shape[:-1], -1, per_byte)
    return sum(grouped[..., i] << (bits * i) for i in range(per_byte)).astype(np.uint8)


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 70),
    bits=st.sampled_from([2, 4, 8]),
    block=st.sampled_from([16, 32, 64]),
    zeros=st.sampled_from(["none", "packed", "float"]),
    seed=st.integers(0, 99),
)
def test_dequantize(n: int, k: int, bits: int, block: int, zeros: str, seed: int) -> None:
    rng, blocks = np.random.default_rng(seed), -(-k // block)
    codes = rng.integers(0, 1 << bits, (n, blocks * block))
    scales = rng.uniform(0.01, 0.1, (n, blocks)).astype(np.float32)
    offset = np.full((n, blocks), 1 << (bits - 1))
    given_zeros = None
    if zeros == "packed":
        offset = rng.integers(0, 1 << bits, (n, blocks))
        given_zeros = pack(offset, bits)
    elif zeros == "float":
        given_zeros = offset = rng.uniform(0, 1 << bits, (n, blocks)).astype(np.float32)
    repeated = [np.repeat(a, block, axis=1)[:, :k] for a in (scales, offset)]
    expected = (codes[:, :k].astype(np.float32) - repeated[1].astype(np.float32)) * repeated[0]
    packed = pack(codes.reshape(n, blocks, block), bits)
    w = block_quantized.dequantize(packed, scales, given_zeros, n=n, k=k, bits=bits, block=block)
    assert w.dtype == np.float32 and np.array_equal(w, expected)


class Quantized:
    """One MatMulNBits, and an embedding on the same codes if ``tied``; W is (6, 40) in blocks of 32, so K is padded."""

    N, K, BLOCK = 6, 40, 32

    def __init__(self, rng: np.random.Generator, *, bits: int = 4, tied: bool = False, **changes: Any) -> None:
        blocks = -(-self.K // self.BLOCK)
        codes = rng.integers(0, 1 << bits, (self.N, blocks, self.BLOCK))
        self.tensors = {
            "packed": pack(codes, bits),
            "scales": rng.uniform(0.01, 0.1, (self.N, blocks)).astype(np.float32),
            "zeros": pack(rng.integers(0, 1 << bits, (self.N, blocks)), bits),
            "bias": rng.standard_normal(self.N).astype(np.float32),
            "order": np.arange(self.K, dtype=np.int32) // self.BLOCK,
            "table_shape": np.array([self.N, blocks * self.BLOCK * bits // 8]),
        } | changes.pop("tensors", {})
        inputs = changes.pop("inputs", ["x", "packed", "scales", "zeros"])
        attrs = {"K": self.K, "N": self.N, "bits": bits, "block_size": self.BLOCK} | changes.pop("attrs", {})
        nodes = [helper.make_node("MatMulNBits", inputs, ["y"], name="head", domain="com.microsoft", **attrs)]
        outputs = [helper.make_tensor_value_info("y", 1, ["B", self.N])]
        graph_inputs = [helper.make_tensor_value_info("x", 1, ["B", self.K])]
        if tied:
            options = {"gather_axis": 0, "quantize_axis": 1, "block_size": self.BLOCK, "bits": bits} | changes
            wanted = ["table", "ids", "scales", "zeros"]
            nodes += [
                helper.make_node("Reshape", ["packed", "table_shape"], ["table"]),
                helper.make_node(
                    "GatherBlockQuantized", wanted, ["e"], name="embed", domain="com.microsoft", **options
                ),
            ]
            outputs.append(helper.make_tensor_value_info("e", 1, ["S", blocks * self.BLOCK]))
            graph_inputs.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["S"]))
        free = changes.pop("free", [])
        graph_inputs += [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(self.tensors[n].dtype), self.tensors[n].shape
            )
            for n in free
        ]
        used = {name for node in nodes for name in node.input} - set(free)
        constants = [numpy_helper.from_array(v, n) for n, v in self.tensors.items() if n in used]
        graph = helper.make_graph(nodes, "quantized", graph_inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        self.proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul(bits: int, bias: bool, rng: np.random.Generator, tmp_path: Path, to_model: Any) -> None:
    inputs = ["x", "packed", "scales", "zeros"] + (["", "bias"] if bias else [])
    quantized = Quantized(rng, bits=bits, inputs=inputs)
    model = to_model(quantized.proto)
    RULES.run(model, Report())
    (node,) = model.graph.nodes
    assert (node.op, node.name, node.attrs["trans_w"]) == ("LinearBias" if bias else "Linear", "head", 1)
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {"x": activations(rng, 5, Quantized.K)}
    (want,), (got,) = run_ort(quantized.proto, feeds), run_ort(tmp_path / "after.onnx", feeds)
    # Sums of 40 products in another order: half an ulp each, at most.
    assert np.linalg.norm(got - want) <= 40 * 2.0**-24 * np.linalg.norm(want)


def test_tied_embedding(rng: np.random.Generator, tmp_path: Path, to_model: Any) -> None:
    quantized = Quantized(rng, tied=True)
    model = to_model(quantized.proto)
    RULES.run(model, Report())
    assert sorted(n.op for n in model.graph.nodes) == ["Gather", "Linear"]
    attach_bodies(model, OPS)
    ir.save(model, tmp_path / "after.onnx")
    feeds = {"x": activations(rng, 5, Quantized.K), "ids": np.array([5, 0, 5, 2])}
    for got, want in zip(run_ort(tmp_path / "after.onnx", feeds), run_ort(quantized.proto, feeds), strict=True):
        assert np.linalg.norm(got - want) <= 40 * 2.0**-24 * np.linalg.norm(want)


@pytest.mark.parametrize(("k", "settings"), [(48, {"block_size": 32}), (128, {}), (40, {"block_size": 16, "bits": 8})])
@pytest.mark.parametrize("zeros", [False, True])
def test_table_of_its_own(
    k: int, settings: dict[str, int], zeros: bool, rng: np.random.Generator, tmp_path: Path, to_model: Any
) -> None:
    """Its rows are as wide as K, whose last block may not be full; 4 bits and blocks of 128 need not be said."""
    bits, blocks = settings.get("bits", 4), -(-k // settings.get("block_size", 128))
    tensors = {
        "table": rng.integers(0, 256, (6, k * bits // 8), np.uint8),
        "scales": rng.uniform(0.01, 0.1, (6, blocks)).astype(np.float32),
        "zeros": rng.integers(0, 256, (6, -(-blocks * bits // 8)), np.uint8),
    }
    inputs = ["table", "ids", "scales", *(["zeros"] if zeros else [])]
    node = helper.make_node("GatherBlockQuantized", inputs, ["e"], name="embed", domain="com.microsoft", **settings)
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["S"])
    e = helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["S", k])
    constants = [numpy_helper.from_array(tensors[name], name) for name in inputs if name != "ids"]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(
        helper.make_graph([node], "table", [ids], [e], constants), opset_imports=opsets, ir_version=10
    )
    model = to_model(proto)
    RULES.run(model, Report())
    ir.save(model, tmp_path / "after.onnx")
    feeds = {"ids": np.array([5, 0, 5, 2])}
    np.testing.assert_array_equal(run_ort(tmp_path / "after.onnx", feeds)[0], run_ort(proto, feeds)[0])


def test_tied_embedding_shares_the_weight(rng: np.random.Generator, to_model: Any) -> None:
    """Where K is a multiple of the block, as in real models, one tensor is written out, not two."""

    class Even(Quantized):
        K = 64

    model = to_model(Even(rng, tied=True).proto)
    RULES.run(model, Report())
    weights = {n.op: next(t for t in n.inputs if list(t.shape or []) == [6, 64]) for n in model.graph.nodes}
    assert weights["Gather"] is weights["Linear"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": ["x", "packed", "scales", "zeros", "order"]}, "input channels are reordered (g_idx 'order')"),
        ({"attrs": {"bits": 3}}, "bits is 3"),
        ({"attrs": {"weight_prepacked": 1}}, "weight_prepacked is 1"),
        ({"free": ["scales"]}, "scales 'scales' is not a constant"),
        ({"free": ["packed"]}, "packed 'packed' is not a constant"),
        ({"tensors": {"packed": np.ones((6, 2, 16), np.int8)}}, "'packed' are not packed into uint8"),
    ],
)
def test_matmul_refusals(changes: dict[str, Any], reason: str, rng: np.random.Generator, to_model: Any) -> None:
    model, report = to_model(Quantized(rng, **changes).proto), Report()
    RULES.run(model, report)
    assert [n.op for n in model.graph.nodes] == ["MatMulNBits"]
    assert [reason in f.reason for f in report.findings] == [True]


def test_gather_refusals(rng: np.random.Generator, to_model: Any) -> None:
    model, report = to_model(Quantized(rng, tied=True, gather_axis=1).proto), Report()
    RULES.run(model, report)
    assert "GatherBlockQuantized" in {n.op for n in model.graph.nodes}
    assert ["rows are not gathered" in f.reason for f in report.findings if f.status == "skipped"] == [True]
