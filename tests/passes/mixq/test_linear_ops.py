"""The 4-bit linears: what they mean in terms of the 8-bit one, and that TensorRT runs their bodies."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.core.op import OpSpec, attach_bodies
from graphopt.engine.build import BuildOptions, build
from graphopt.ir import Model, save
from graphopt.numerics.packing import pack_int4, packed_bytes
from graphopt.passes.mixq import numerics, ops
from graphopt.passes.mixq.ops import LINEAR, LINEAR_W4A4, LINEAR_W4A8, OPS

TOKENS, N, C = 5, 12, 16


class Operands:
    """Random operands of a 4-bit linear of K columns with groups of ``group``."""

    def __init__(self, seed: int, k: int, group: int) -> None:
        rng = np.random.default_rng(seed)
        self.group = group
        self.indices = numerics.pad_indices(rng.choice(k, min(k, 3), replace=False), C)
        x = rng.standard_normal((TOKENS, k)).astype(np.float32)
        x[:, self.indices[self.indices >= 0]] *= 40
        self.x8, self.x4 = (numerics.quantize_rows(x, self.indices, bits) for bits in (8, 4))
        w = rng.standard_normal((N, k)).astype(np.float32)
        self.codes, _, self.wo = numerics.quantize_rows(w, self.indices, 4)
        self.sg = rng.integers(1, 19, (-(-k // group), N)).astype(np.int8)
        self.sw, self.bias = rng.uniform(1e-3, 1e-2, N).astype(np.float32), rng.standard_normal(N).astype(np.float32)

    @property
    def weight(self) -> tuple[np.ndarray, ...]:
        return pack_int4(self.codes), self.sg, self.sw, self.wo, self.bias

    @property
    def eight_bit_weight(self) -> tuple[np.ndarray, ...]:
        scales = np.stack([self.sg[k // self.group] for k in range(self.codes.shape[1])], axis=1)
        return self.codes * scales, self.sw, self.wo, self.bias


cases = given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 140), group=st.sampled_from([32, 64, 128, 160]))


@cases
def test_w4a8_is_w8a8_with_the_codes_times_their_group_scales(seed: int, k: int, group: int) -> None:
    o = Operands(seed, k, group)
    assert np.abs(o.eight_bit_weight[0].astype(int)).max() <= 126
    (four,) = LINEAR_W4A8.evaluate(*o.x8, *o.weight, group=group)
    (eight,) = LINEAR.evaluate(*o.x8, *o.eight_bit_weight)
    np.testing.assert_array_equal(four, eight)


@cases
def test_w4a4_is_w4a8_of_the_same_codes(seed: int, k: int, group: int) -> None:
    o = Operands(seed, k, group)
    xq, sx, xo = o.x4
    assert np.abs(xq).max() <= 7
    (packed,) = LINEAR_W4A4.evaluate(pack_int4(xq), sx, xo, *o.weight, group=group)
    (plain,) = LINEAR_W4A8.evaluate(xq, sx, xo, *o.weight, group=group)
    np.testing.assert_array_equal(packed, plain)


@pytest.mark.parametrize("spec", OPS, ids=lambda s: s.name)
def test_ops_claim_a_plugin_only_where_there_is_one(spec: OpSpec) -> None:
    four_bits = any(p.name == "xq4" for p in (*spec.inputs, *spec.outputs))
    assert spec.plugin or four_bits, "only ops of 4-bit activations may lack one"


def _chain(dtype: str, k: int, *, online: bool) -> Model:
    """Two quantizing ops of each width, each read by two linears, so that every body is there more than once.

    No node names a plugin.
    """
    o, kind = Operands(7, k, 64), np.dtype(dtype)
    x = gs.Variable("x", kind, ["batch", "length", k])
    nodes, outputs = [], []
    slots = 2 * C if online else C
    settings = {"capacity": slots} if online else {}
    for bits, linear, codes in ((8, LINEAR_W4A8, k), (4, LINEAR_W4A4, packed_bytes(k))):
        for quantizer in ("a", "b"):
            stem = f"{quantizer}{bits}"
            kinds = {"xq": (np.int8, codes), "sx": (np.float32, 1), "xo": (kind, slots)}
            made = [gs.Variable(f"{stem}_{n}", t, ["batch", "length", last]) for n, (t, last) in kinds.items()]
            idx = gs.Constant(f"{stem}_idx", o.indices)
            predicted = [gs.Variable(f"{stem}_set", np.int32, [slots])] if online else []
            spec = ops.variant(ops.QUANTIZE, bits=bits, online=online)
            nodes.append(spec.node(stem, [x, idx], [*made, *predicted], **settings))
            for reader in ("p", "q"):
                name = f"{stem}{reader}"
                weight = [a if a.dtype == np.int8 or i == 2 else a.astype(kind) for i, a in enumerate(o.weight)]
                given = [*made, *(gs.Constant(f"{name}_{i}", a) for i, a in enumerate(weight))]
                given += [idx, *predicted] if online else []
                outputs.append(gs.Variable(f"{name}_y", kind, ["batch", "length", N]))
                spec = ops.variant(linear, online=online)
                nodes.append(spec.node(name, given, [outputs[-1]], group=64))
    for node in nodes:
        for attribute in ("plugin_version", "plugin_namespace"):
            node.attrs.pop(attribute, None)
    model = Model(gs.Graph(nodes, [x], outputs, opset=18))
    attach_bodies(model, OPS)
    return model


@pytest.mark.rtx
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(("dtype", "k"), [("float32", 80), ("float16", 77)])
def test_tensorrt_imports_bodies(dtype: str, k: int, online: bool, tmp_path: Path) -> None:
    (path, *_) = save(_chain(dtype, k, online=online), tmp_path / "chain.onnx")
    options = BuildOptions(
        flavour="rtx",
        native_fallback=True,
        min_shapes=(f"x:1x1x{k}",),
        opt_shapes=(f"x:1x8x{k}",),
        max_shapes=(f"x:2x16x{k}",),
    )
    result = build(path, tmp_path / "chain.plan", options)
    assert result.manifest.plugin_layers == 0
    assert [t.shape for t in result.manifest.outputs] == [(-1, -1, N)] * 8
