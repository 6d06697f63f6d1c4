"""The mixed-precision linears of MixQ: w8a8, w4a8 and w4a4.

All three compute Y = T(s_x s_w (X_q W_cᵀ) + X_O W_Oᵀ + bias) with int8 weight codes W_c. In the 4-bit ones W_c is not
stored but made from 4-bit codes and integer group scales, W_c[n, k] = sg[k // group, n] · W_q4[n, k], so that every sum
of products stays an exact int32 one with one scale at the end, whatever the groups are: a kernel decodes while it loads
and is otherwise the one of w8a8 (numerics.py, "4-bit weights").
"""

__all__ = ["LINEAR", "LINEAR_W4A4", "LINEAR_W4A8"]

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics.packing import PACK_STEP, pack_int4, unpack_int4
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq.operands import SX, XO, XQ, XQ4, example_indices, example_rows

_SW = Param("sw", "(N,) float32: scale of each output channel")
_WO = Param("wo", "(N, C) T: original outlier columns, 0 in padding")
_BIAS = Param("bias", "(N,) T: zeros if the linear has none")
_Y = Param("y", "(..., N) T")
_WQ4 = Param(
    "wq4",
    "(N, B) int8: codes in -7..7, 0 in outlier columns, two to a byte (graphopt.numerics.packing): byte 16v + i "
    "holds column 32v + i in its low nibble and 32v + 16 + i in its high one; B = 16 ceil(K / 32), 0 in padding",
)
_SG = Param("sg", "(G, N) int8: integer scale in 1..18 of each group and output channel; G = ceil(K / group)")
_GROUP = Attribute(
    "group", 64, "columns that share an integer scale, a multiple of 32; at least K where all do (sg is 1)"
)

_SUM = "int8 products in int32, outlier products in float32, one rounding to T at the end (MixQ, SC'24)"


def _eight_bit_body(b: BodyBuilder) -> None:
    x = b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8))
    w = b.op("DequantizeLinear", "wq", "sw", axis=0)
    _add_outliers(b, b.op("Mul", b.op("MatMul", x, b.op("Transpose", w, perm=[1, 0])), "sx"))


def _add_outliers(b: BodyBuilder, inner: str) -> None:
    outer = b.op("MatMul", b.cast("xo"), b.op("Transpose", b.cast("wo"), perm=[1, 0]))
    b.cast_like(b.op("Add", b.op("Add", inner, outer), b.cast("bias")), "xo", out="y")


def _four_bit_body(b: BodyBuilder, x: str) -> None:
    """Write y for the float32 codes ``x`` (..., columns); columns of wq4 beyond those are padding."""
    columns = b.op("Gather", b.op("Shape", x), b.const([-1], np.int64), axis=0)
    first, one = b.const([0], np.int64), b.const([1], np.int64)
    codes = b.op("Slice", _unpacked(b, "wq4"), first, columns, one, one)
    every = b.op("Range", b.const(0, np.int64), b.op("Squeeze", columns, first), b.const(1, np.int64))
    group = b.op("Div", every, b.attribute("group", AttributeProto.INT))
    scales = b.op("Gather", b.op("DequantizeLinear", "sg", b.const(1.0), b.const(0, np.int8)), group, axis=0)
    w = b.op("Mul", b.op("Transpose", codes, perm=[1, 0]), scales)
    _add_outliers(b, b.op("Mul", b.op("Mul", b.op("MatMul", x, w), "sx"), "sw"))


def _unpacked(b: BodyBuilder, packed: str) -> str:
    """Return the codes of `unpack_int4`, padding included, as float32: (..., B) int8 -> (..., 2B)."""
    byte = b.op("DequantizeLinear", packed, b.const(1.0), b.const(0, np.int8))
    sixteen, last = b.const(16.0), b.const([-1], np.int64)
    high = b.op("Floor", b.op("Mul", byte, b.const(1 / 16)))
    nibble = b.op("Sub", byte, b.op("Mul", high, sixteen))
    low = b.op("Sub", nibble, b.op("Mul", b.op("Floor", b.op("Mul", nibble, b.const(1 / 8))), sixteen))
    shape = b.op("Shape", byte)
    lead, count = b.op("Slice", shape, b.const([0], np.int64), last), b.op("Gather", shape, last, axis=0)
    half = b.const([PACK_STEP // 2], np.int64)
    vectors = b.op("Concat", lead, b.op("Div", count, half), half, axis=0)
    halves = b.op("Concat", b.op("Reshape", low, vectors), b.op("Reshape", high, vectors), axis=-1)
    return str(b.op("Reshape", halves, b.op("Concat", lead, b.op("Mul", count, b.const([2], np.int64)), axis=0)))


def _w4a8_body(b: BodyBuilder) -> None:
    _four_bit_body(b, b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8)))


def _w4a4_body(b: BodyBuilder) -> None:
    _four_bit_body(b, _unpacked(b, "xq4"))


def _evaluate_w4a8(
    xq: np.ndarray, sx: np.ndarray, xo: np.ndarray, wq4: np.ndarray, sg: np.ndarray, *rest: np.ndarray, group: int = 64
) -> tuple[np.ndarray, ...]:
    codes = unpack_int4(wq4, xq.shape[-1])
    return (numerics.linear(xq, sx, xo, numerics.grouped_codes(codes, sg, group), *rest),)


def _evaluate_w4a4(xq4: np.ndarray, *rest: np.ndarray, group: int = 64) -> tuple[np.ndarray, ...]:
    return _evaluate_w4a8(unpack_int4(xq4, 2 * xq4.shape[-1]), *rest, group=group)


def _eight_bit_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    x, w = example_rows(rng, dtype), (rng.standard_normal((24, 80)) * 0.1).astype(dtype)
    return (
        *numerics.quantize_rows(x, example_indices()),
        *numerics.quantize_weight(w, example_indices()),
        rng.standard_normal(24).astype(dtype),
    )


def _four_bit_examples(rng: np.random.Generator, dtype: Any, bits: int) -> Sequence[np.ndarray]:
    x, w = example_rows(rng, dtype), rng.standard_normal((24, 80)).astype(dtype)
    xq, sx, xo = numerics.quantize_rows(x, example_indices(), bits)
    codes, sw, wo = numerics.quantize_rows(w, example_indices(), 4)
    groups = rng.integers(1, numerics.GROUP_SCALE_MAX + 1, (2, 24)).astype(np.int8)
    bias = rng.standard_normal(24).astype(dtype)
    return xq if bits == 8 else pack_int4(xq), sx, xo, pack_int4(codes), groups, sw[:, 0] / 10, wo, bias


LINEAR = OpSpec(
    name="MixQLinear",
    family="Linear",
    doc=f"y = T(sx * sw * (xq @ wq^T) + xo @ wo^T + bias): {_SUM}.",
    inputs=(XQ, SX, XO, Param("wq", "(N, K) int8: row-major codes, 0 in outlier columns"), _SW, _WO, _BIAS),
    outputs=(_Y,),
    body=_eight_bit_body,
    evaluate=lambda *inputs: (numerics.linear(*inputs),),
    examples=_eight_bit_examples,
    plugin=True,
)

LINEAR_W4A8 = OpSpec(
    name="MixQLinearW4A8",
    family="Linear",
    doc="y = T(sx * sw * (xq @ wc^T) + xo @ wo^T + bias), where wc[n, k] = sg[k // group, n] * wq4[n, k] fits int8: "
    f"{_SUM}.",
    inputs=(XQ, SX, XO, _WQ4, _SG, _SW, _WO, _BIAS),
    outputs=(_Y,),
    attributes=(_GROUP,),
    body=_w4a8_body,
    evaluate=_evaluate_w4a8,
    examples=lambda rng, dtype: _four_bit_examples(rng, dtype, 8),
)

LINEAR_W4A4 = OpSpec(
    name="MixQLinearW4A4",
    family="Linear",
    doc="y = T(sx * sw * sum over groups g of sg[g, n] * (xq4 @ wq4^T within g) + xo @ wo^T + bias): int4 products and "
    f"their scaled sums in int32, which is MixQLinearW4A8 of the unpacked xq4 exactly; {_SUM}.",
    inputs=(XQ4, SX, XO, _WQ4, _SG, _SW, _WO, _BIAS),
    outputs=(_Y,),
    attributes=(_GROUP,),
    body=_w4a4_body,
    evaluate=_evaluate_w4a4,
    examples=lambda rng, dtype: _four_bit_examples(rng, dtype, 4),
)
