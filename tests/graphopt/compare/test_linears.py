from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from graphopt import ir
from graphopt.compare.linears import WeightLayer, bits_per_weight, weight_layers
from graphopt.core.op import DOMAIN, OpSpec
from graphopt.errors import InternalError
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq import ops as mixq
from tests.support.arrays import weight
from tests.support.canonical import CanonicalMlp


def _model(tmp_path: Path, graph: str, **initializers: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>\n{graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in initializers.items())
    onnx.save(proto, tmp_path / "m.onnx")
    return ir.load(tmp_path / "m.onnx")


def test_standard_products(tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(
        tmp_path,
        """m (float[n, 24] x) => (float[n, 8] c, float[n, n] d) {
            a = MatMul(x, w)
            wide = Cast <to = 1> (half)
            turned = Transpose <perm = [1, 0]> (wide)
            b = MatMul(a, turned)
            c = Gemm <transB = 1> (b, g, bias)
            xt = Transpose <perm = [1, 0]> (x)
            d = MatMul(x, xt)
        }""",
        w=weight(rng, 24, 40),
        half=weight(rng, 16, 40, dtype=np.float16),
        g=weight(rng, 8, 16),
        bias=weight(rng, 8),
    )
    for node, name in zip([n for n in model.graph.nodes if n.op in ("MatMul", "Gemm")], "abcd", strict=True):
        node.name = name
    layers = weight_layers(model)
    assert layers == [
        WeightLayer("a", "a", 40, 960, 960 * 32, False),
        WeightLayer("b", "b", 16, 640, 640 * 16, False),
        WeightLayer("c", "c", 8, 128, 128 * 32, False),
    ]
    assert bits_per_weight(layers) == pytest.approx((960 * 32 + 640 * 16 + 128 * 32) / (960 + 640 + 128))


def test_dequantized_weights_count_as_stored(tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(
        tmp_path,
        """m (float[n, 24] x) => (float[n, 40] y) {
            w = DequantizeLinear <axis = 1> (codes, scale, zero)
            y = MatMul(x, w)
        }""",
        codes=rng.integers(-127, 128, (24, 40)).astype(np.int8),
        scale=rng.uniform(0.01, 0.02, 40).astype(np.float32),
        zero=rng.integers(-3, 3, 40).astype(np.int8),
    )
    (layer,) = weight_layers(model)
    assert (layer.elements, layer.bits) == (960, 960 * 8 + 40 * 32 + 40 * 8)


def test_block_quantized_weights_of_onnx_runtime(tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(
        tmp_path,
        """m (float[n, 64] x) => (float[n, 16] y) {
            y = com.microsoft.MatMulNBits <K = 64, N = 16, bits = 4, block_size = 32> (x, codes, scales)
        }""",
        codes=rng.integers(0, 256, (16, 2, 16)).astype(np.uint8),
        scales=rng.uniform(0.01, 0.02, 32).astype(np.float32),
    )
    (layer,) = weight_layers(model)
    assert bits_per_weight([layer]) == 4 + 32 / 32


def test_canonical_linears(rng: np.random.Generator) -> None:
    layers = weight_layers(CanonicalMlp.random(rng).model)
    assert [(x.name, x.output, x.outputs, x.elements) for x in layers] == [
        ("q", "q", 40, 960),
        ("k", "k", 16, 384),
        ("o", "y", 8, 320),
    ]
    assert bits_per_weight(layers) == 32


def _mixq_model(rng: np.random.Generator) -> ir.Model:
    indices = numerics.pad_indices(np.array([1, 5, 30]), 16)
    wq, sw, wo = numerics.quantize_weight(weight(rng, 64, 48, dtype=np.float16), indices)
    x, y = gs.Variable("x", np.float16, ["n", 48]), gs.Variable("y", np.float16, ["n", 64])
    inner = [gs.Variable("xq", np.int8), gs.Variable("sx", np.float32), gs.Variable("xo", np.float16)]
    constants = [
        gs.Constant(n, a) for n, a in (("wq", wq), ("sw", sw), ("wo", wo), ("b", weight(rng, 64, dtype=np.float16)))
    ]
    nodes = [
        mixq.QUANTIZE.node("quantize", [x, gs.Constant("idx", indices)], inner),
        mixq.LINEAR.node("fc", [*inner, *constants], [y]),
    ]
    return ir.Model(gs.Graph(nodes, [x], [y], opset=18))


def test_mixq_counts_codes_scales_and_outlier_columns_but_no_bias(rng: np.random.Generator) -> None:
    (layer,) = weight_layers(_mixq_model(rng))
    assert (layer.name, layer.output, layer.outputs, layer.elements) == ("fc", "y", 64, 64 * 48)
    assert bits_per_weight([layer]) == 8 + (64 * 32 + 64 * 16 * 16) / (64 * 48)


@pytest.mark.parametrize("spec", [mixq.LINEAR_W4A8, mixq.LINEAR_W4A4], ids=lambda s: s.name)
def test_packed_codes_are_two_weights_a_byte(spec: OpSpec, rng: np.random.Generator) -> None:
    model, names = _mixq_model(rng), [p.name for p in spec.inputs]
    given = [*model.graph.nodes[1].inputs]
    given[3:4] = [
        gs.Constant("wq4", rng.integers(-128, 128, (64, 32)).astype(np.int8)),
        gs.Constant("sg", rng.integers(1, 19, (1, 64)).astype(np.int8)),
    ]
    model.graph.nodes[1] = spec.node("fc", given, list(model.graph.nodes[1].outputs))
    assert names[3:5] == ["wq4", "sg"]
    (layer,) = weight_layers(model)
    assert (layer.outputs, layer.elements) == (64, 64 * 64)
    assert bits_per_weight([layer]) == 4 + (64 * 8 + 64 * 32 + 64 * 16 * 16) / (64 * 64)


def test_a_lowered_linear_that_nobody_knows_is_a_bug(rng: np.random.Generator) -> None:
    model = _mixq_model(rng)
    model.graph.nodes[1].op = "OtherLinear"
    assert model.graph.nodes[1].domain == DOMAIN
    with pytest.raises(InternalError, match="OtherLinear"):
        weight_layers(model)


def test_a_tied_head_is_the_embedding(tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(
        tmp_path,
        """m (int64[n] ids) => (float[n, 50] logits) {
            x = Gather(table, ids)
            y = MatMul(x, w)
            head = Transpose <perm = [1, 0]> (table)
            logits = MatMul(y, head)
        }""",
        table=weight(rng, 50, 24),
        w=weight(rng, 24, 24, dtype=np.float32),
    )
    layers = weight_layers(model)
    assert [layer.embedding for layer in layers] == [False, True]
    assert bits_per_weight(layers) == 32
    assert bits_per_weight(layers[1:]) is None
