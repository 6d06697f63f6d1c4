"""The way through a graph: which tensor is which linear, and what is no decoder that the package computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import ir
from graphopt.deploy.tensorrt_llm.network import Network, read
from graphopt.errors import DeployError
from graphopt.ir import weights
from graphopt.numerics.packing import unpack_int4

ROOT = Path(__file__).parents[4]
Optimized = Callable[..., Path]
UNMERGED = """
version: 1
layers:
  - match: "*"
    scheme: mixq
    settings: {bits: %s, merge: false}
"""


def network(path: Path) -> Network:
    return read(ir.load(path))


def original(path: Path, name: str) -> np.ndarray:
    """A weight before it was packed, from the model that lies beside, (outputs, inputs)."""
    graph = onnx.load(path.with_name("float32.onnx")).graph
    weight = numpy_helper.to_array(next(t for t in graph.initializer if t.name == name))
    # MatMul has (inputs, outputs), Gemm with transB the other way round.
    return weight.T if any(name in n.input and n.op_type == "MatMul" for n in graph.node) else weight


@pytest.mark.parametrize("scheme", ["mixq-w8a8", "mixq-w4a8"])
@pytest.mark.parametrize("sizes", [{}, {"qkv_bias": True, "num_key_value_heads": 4}])
def test_every_linear_has_its_name_and_its_rows(optimized: Optimized, scheme: str, sizes: dict[str, object]) -> None:
    """Codes times scales, and outlier columns, are the weight of that name in the original model."""
    path = optimized(scheme, **sizes)
    found = network(path)
    assert found.layers == 2 and len(found.linears) == 15
    for name, linear in found.linears.items():
        w = original(path, f"{name}.weight")
        assert linear.rows == len(w)
        channels = weights.read(linear.quantizer.idx)
        real = channels[channels >= 0]
        np.testing.assert_array_equal(linear.tensors["wo"].read()[:, : len(real)], w[:, real])
        packed = linear.tensors["wq4" if linear.bits == 4 else "wq"].read()
        codes = unpack_int4(packed, w.shape[1]) if linear.bits == 4 else packed
        scale = linear.tensors["sw"].read()[:, None] * np.ones_like(w)
        if linear.bits == 4:
            scale = scale * np.repeat(linear.tensors["sg"].read(), linear.group, axis=0)[: w.shape[1]].T
        inner = np.delete(w - codes * scale, real, axis=1)
        error = np.linalg.norm(inner) / np.linalg.norm(w)
        assert error < (0.25 if linear.bits == 4 else 0.01), name
        assert linear.bits == (4 if scheme == "mixq-w4a8" and name != "lm_head" else 8)
    assert found.head is None


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_stayed_as_it_was(optimized: Optimized, tied: bool) -> None:
    path = optimized(ROOT / "models" / "recipes" / "llama-w8a8.yaml", tie_word_embeddings=tied)
    found = network(path)
    assert "lm_head" not in found.linears and len(found.norms) == 5
    assert found.tied == tied
    gamma = numpy_helper.to_array(
        next(t for t in onnx.load(path.with_name("float32.onnx")).graph.initializer if t.name == "model.norm.weight")
    )
    np.testing.assert_array_equal(weights.read(found.norms["model.norm"]), gamma)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_merged_linears_come_apart_as_they_were(optimized: Optimized, tmp_path: Path, bits: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(UNMERGED % bits)
    apart, merged = network(optimized(recipe)), network(optimized(f"mixq-{bits}" if bits == "w8a8" else "mixq-w4a8"))
    kinds = {len({id(x.tensors["sw"].constant) for x in n.linears.values()}) for n in (apart, merged)}
    assert len(kinds) == 2, "one graph should have merged linears, and the other none"
    for name in apart.linears:
        if name == "lm_head":
            continue
        assert apart.linears[name].tensors.keys() == merged.linears[name].tensors.keys()
        for key, operand in apart.linears[name].tensors.items():
            np.testing.assert_array_equal(operand.read(), merged.linears[name].tensors[key].read(), f"{name}.{key}")


def swap(proto: onnx.ModelProto, suffix: str) -> None:
    """Exchange the inputs of the linear or activation whose op ends in ``suffix``."""
    node = next(n for n in proto.graph.node if n.op_type.endswith(suffix))
    node.input[0], node.input[1] = node.input[1], node.input[0]


def test_a_gate_is_what_the_activation_takes_first(optimized: Optimized, tmp_path: Path) -> None:
    """Names in the file do not decide between gate and up: the activation does."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(UNMERGED % "w8a8")
    path = optimized(recipe, "float32", rope_theta=5000.0)
    proto = onnx.load(path)
    swap(proto, "MixQGatedSilu")
    onnx.save(proto, tmp_path / "swapped.onnx")
    before, after = network(path), network(tmp_path / "swapped.onnx")
    gate, up = (f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up"))
    for a, b in ((gate, up), (up, gate)):
        np.testing.assert_array_equal(before.linears[a].tensors["wq"].read(), after.linears[b].tensors["wq"].read())
        assert after.linears[b].name == b


def test_other_ops_are_refused_by_name(optimized: Optimized, tmp_path: Path) -> None:
    proto = onnx.load(optimized())
    node = next(n for n in proto.graph.node if n.op_type == "MixQQuantize")
    for op, reason in (
        ("MixQQuantizeOnline", "predicts outliers online"),
        ("CachedAttention", "without --kv-cache"),
        ("VQLinear", "mixq-w8a8 or mixq-w4a8"),
        ("VQLinearE8", "mixq-w8a8 or mixq-w4a8"),
        ("MANTLinear", "mixq-w8a8 or mixq-w4a8"),
    ):
        node.op_type = op
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(DeployError, match=reason) as error:
            network(tmp_path / "m.onnx")
        assert f"'{node.name}' is a {op}" in str(error.value)


def rename(proto: onnx.ModelProto, old: str, new: str) -> None:
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]


def test_a_graph_with_another_flow_is_refused(optimized: Optimized, tmp_path: Path) -> None:
    """Each of these would be a wrong checkpoint without a word."""
    path = optimized()

    def broken(change: Callable[[onnx.GraphProto], None]) -> str:
        proto = onnx.load(path)
        change(proto.graph)
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(DeployError) as error:
            network(tmp_path / "m.onnx")
        return str(error.value)

    def nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
        return [n for n in graph.node if n.op_type == op]

    def other_residual(graph: onnx.GraphProto) -> None:
        adds = nodes(graph, "MixQAddRMSNorm")
        adds[2].input[0] = adds[0].output[3]

    def normalized_output(graph: onnx.GraphProto) -> None:
        """The norm has another reader than what was quantized of it; one of its shape alone would be fine."""
        node = nodes(graph, "MixQAddRMSNorm")[0]
        (attribute,) = (a for a in node.attribute if a.name == "emit_y")
        attribute.i = 1
        graph.node.append(onnx.helper.make_node("Shape", [node.output[4]], ["shape_of_y"]))
        graph.node.append(onnx.helper.make_node("Neg", [node.output[4]], ["negated"]))
        graph.output.append(onnx.helper.make_tensor_value_info("negated", onnx.TensorProto.FLOAT, None))

    def two_quantizers(graph: onnx.GraphProto) -> None:
        """v goes past the attention."""
        value = next(n for n in nodes(graph, "MixQLinear") if "v_proj" in n.name)
        nodes(graph, "MixQQuantize")[1].input[0] = value.output[0]

    def other_embedding(graph: onnx.GraphProto) -> None:
        gather = next(n for n in graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
        gather.input[1] = "position_ids"

    assert "does not add to the residual stream" in broken(other_residual)
    assert "is read by a layer that is not packed" in broken(normalized_output)
    assert "should end in one MixQQuantize" in broken(two_quantizers)
    assert "no Gather reads an embedding" in broken(other_embedding)


@pytest.mark.parametrize(
    ("excluded", "reason"),
    [
        ("*down_proj*", "do not meet in a gated SiLU"),
        ("*v_proj*", r"should be read by the packed .*v_proj, not by .*k_proj"),
        ("*", "does not go into a MixQRMSNorm"),
    ],
)
def test_linears_that_stayed_as_they_were_are_refused(
    optimized: Optimized, tmp_path: Path, excluded: str, reason: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    rest = '  - {match: "*", scheme: mixq}\n' if excluded != "*" else ""
    recipe.write_text(f'version: 1\nlayers:\n  - {{match: "{excluded}", scheme: none}}\n{rest}')
    with pytest.raises(DeployError, match=reason):
        network(optimized(recipe))
