"""The mixed-precision linears of MixQ: w8a8, w4a8 and w4a4.

All three compute Y = T(s_x s_w (X_q W_cᵀ) + X_O W_Oᵀ + bias) with int8 weight codes W_c. In the 4-bit ones W_c is not
stored but made from 4-bit codes and integer group scales, W_c[n, k] = sg[k // group, n] · W_q4[n, k], so that every sum
of products stays an exact int32 one with one scale at the end, whatever the groups are: a kernel decodes while it loads
and is otherwise the one of w8a8 (numerics.py, "4-bit weights").

Each has a form for online prediction, with "Online" at the end of its name: xo then holds the channels set, of which
only those of idx have original columns in wo; the others' are T(s_w W_c).
"""

__all__ = ["LINEAR", "LINEAR_W4A4", "LINEAR_W4A8", "ONLINE_LINEARS"]

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import AttributeProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics.packing import PACK_STEP, pack_int4, unpack_int4
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq.operands import IDX, SET, SX, XO, XQ, XQ4, example_indices, example_rows
from graphopt.passes.mixq.prediction import write_columns

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


#: Returns the outlier columns, given what writes the dequantized weight (N, K) float32.
_Columns = Callable[[BodyBuilder, Callable[[], str]], str]


def _original_columns(_: BodyBuilder, __: Callable[[], str]) -> str:
    return "wo"


def _extended_columns(b: BodyBuilder, weight: Callable[[], str]) -> str:
    return write_columns(b, weight())


def _eight_bit_body(b: BodyBuilder, columns: _Columns = _original_columns) -> None:
    x = b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8))
    w = b.op("DequantizeLinear", "wq", "sw", axis=0)
    _add_outliers(b, b.op("Mul", b.op("MatMul", x, b.op("Transpose", w, perm=[1, 0])), "sx"), columns(b, lambda: w))


def _add_outliers(b: BodyBuilder, inner: str, columns: str) -> None:
    outer = b.op("MatMul", b.cast("xo"), b.op("Transpose", b.cast(columns), perm=[1, 0]))
    b.cast_like(b.op("Add", b.op("Add", inner, outer), b.cast("bias")), "xo", out="y")


def _four_bit_body(b: BodyBuilder, x: str, columns: _Columns) -> None:
    """Write y for the float32 codes ``x`` (..., columns); columns of wq4 beyond those are padding."""
    count = b.op("Gather", b.op("Shape", x), b.const([-1], np.int64), axis=0)
    first, one = b.const([0], np.int64), b.const([1], np.int64)
    codes = b.op("Slice", _unpacked(b, "wq4"), first, count, one, one)
    every = b.op("Range", b.const(0, np.int64), b.op("Squeeze", count, first), b.const(1, np.int64))
    group = b.op("Div", every, b.attribute("group", AttributeProto.INT))
    scales = b.op("Gather", b.op("DequantizeLinear", "sg", b.const(1.0), b.const(0, np.int8)), group, axis=0)
    w = b.op("Mul", b.op("Transpose", codes, perm=[1, 0]), scales)
    inner = b.op("Mul", b.op("Mul", b.op("MatMul", x, w), "sx"), "sw")
    _add_outliers(b, inner, columns(b, lambda: b.op("Transpose", b.op("Mul", w, "sw"), perm=[1, 0])))


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


def _w4a8_body(b: BodyBuilder, columns: _Columns = _original_columns) -> None:
    _four_bit_body(b, b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8)), columns)


def _w4a4_body(b: BodyBuilder, columns: _Columns = _original_columns) -> None:
    _four_bit_body(b, _unpacked(b, "xq4"), columns)


def _evaluate_w4a8(
    xq: np.ndarray, sx: np.ndarray, xo: np.ndarray, wq4: np.ndarray, sg: np.ndarray, *rest: np.ndarray, group: int = 64
) -> tuple[np.ndarray, ...]:
    codes = unpack_int4(wq4, xq.shape[-1])
    return (numerics.linear(xq, sx, xo, numerics.grouped_codes(codes, sg, group), *rest),)


def _evaluate_w4a4(xq4: np.ndarray, *rest: np.ndarray, group: int = 64) -> tuple[np.ndarray, ...]:
    return _evaluate_w4a8(unpack_int4(xq4, 2 * xq4.shape[-1]), *rest, group=group)


#: Makes example inputs of a linear from a generator, T, the outlier channels of the activation and of the weight.
_Examples = Callable[[np.random.Generator, Any, np.ndarray, np.ndarray], Sequence[np.ndarray]]


def _eight_bit_examples(
    rng: np.random.Generator, dtype: Any, of_x: np.ndarray, of_w: np.ndarray
) -> Sequence[np.ndarray]:
    x, w = example_rows(rng, dtype), (rng.standard_normal((24, 80)) * 0.1).astype(dtype)
    bias = rng.standard_normal(24).astype(dtype)
    return (*numerics.quantize_rows(x, of_x), *numerics.quantize_weight(w, of_w), bias)


def _four_bit_examples(
    rng: np.random.Generator, dtype: Any, of_x: np.ndarray, of_w: np.ndarray, bits: int
) -> Sequence[np.ndarray]:
    x, w = example_rows(rng, dtype), rng.standard_normal((24, 80)).astype(dtype)
    xq, sx, xo = numerics.quantize_rows(x, of_x, bits)
    codes, sw, wo = numerics.quantize_rows(w, of_w, 4)
    groups = rng.integers(1, numerics.GROUP_SCALE_MAX + 1, (2, 24)).astype(np.int8)
    bias = rng.standard_normal(24).astype(dtype)
    return xq if bits == 8 else pack_int4(xq), sx, xo, pack_int4(codes), groups, sw[:, 0] / 10, wo, bias


def _w4a8_examples(rng: np.random.Generator, dtype: Any, of_x: np.ndarray, of_w: np.ndarray) -> Sequence[np.ndarray]:
    return _four_bit_examples(rng, dtype, of_x, of_w, 8)


def _w4a4_examples(rng: np.random.Generator, dtype: Any, of_x: np.ndarray, of_w: np.ndarray) -> Sequence[np.ndarray]:
    return _four_bit_examples(rng, dtype, of_x, of_w, 4)


def _offline(examples: _Examples) -> Callable[[np.random.Generator, Any], Sequence[np.ndarray]]:
    return lambda rng, dtype: examples(rng, dtype, example_indices(), example_indices())


LINEAR = OpSpec(
    name="MixQLinear",
    family="Linear",
    doc=f"y = T(sx * sw * (xq @ wq^T) + xo @ wo^T + bias): {_SUM}.",
    inputs=(XQ, SX, XO, Param("wq", "(N, K) int8: row-major codes, 0 in outlier columns"), _SW, _WO, _BIAS),
    outputs=(_Y,),
    body=_eight_bit_body,
    evaluate=lambda *inputs: (numerics.linear(*inputs),),
    examples=_offline(_eight_bit_examples),
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
    examples=_offline(_w4a8_examples),
    plugin=True,
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
    examples=_offline(_w4a4_examples),
    plugin=True,
)


def _int8_codes(given: dict[str, np.ndarray], _: int, __: int) -> np.ndarray:
    return given["wq"]


def _int4_codes(given: dict[str, np.ndarray], channels: int, group: int) -> np.ndarray:
    return numerics.grouped_codes(unpack_int4(given["wq4"], channels), given["sg"], group)


def _online(
    spec: OpSpec,
    body: Callable[[BodyBuilder, _Columns], None],
    codes: Callable[[dict[str, np.ndarray], int, int], np.ndarray],
    examples: _Examples,
) -> OpSpec:
    """Return the form of ``spec`` for online prediction.

    Args:
        spec: a linear.
        body: its body, given what writes the outlier columns.
        codes: W_c (N, K) int8 from the inputs by name, K and the group.
        examples: its inputs.
    """
    names = [p.name for p in spec.inputs]

    def evaluate(*inputs: np.ndarray, **attributes: int) -> tuple[np.ndarray, ...]:
        *own, indices, extended = inputs
        given = dict(zip(names, own, strict=True))
        channels = np.maximum(extended, 0)
        wc = codes(given, int(channels.max(initial=0)) + 1, attributes.get("group", int(_GROUP.default)))
        dequantized = wc[:, channels].astype(np.float32) * given["sw"][:, None]
        given["wo"] = numerics.extend_columns(given["wo"], indices, extended, dequantized)
        return spec.evaluate(*given.values(), **attributes)

    def online_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        # Of the outliers 3, 17 and 79, one was not there when the weight was quantized; 20 is none but was predicted.
        indices = example_indices(known=False)
        extended = numerics.pad_indices(np.array([3, 17, 20, 79]), 2 * numerics.CAPACITY_STEP)
        return (*examples(rng, dtype, extended, indices), indices, extended)

    return replace(
        spec,
        name=f"{spec.name}Online",
        doc=f"{spec.doc} xo holds the channels set. Their columns are those of wo for channels in idx and "
        "T(sw * wc[:, channel]) for others.",
        inputs=(*spec.inputs, IDX, SET),
        body=lambda b: body(b, _extended_columns),
        evaluate=evaluate,
        examples=online_examples,
        _functions={},
    )


#: The forms for online prediction, by the name of the op without it.
ONLINE_LINEARS = {
    LINEAR.name: _online(LINEAR, _eight_bit_body, _int8_codes, _eight_bit_examples),
    LINEAR_W4A8.name: _online(LINEAR_W4A8, _w4a8_body, _int4_codes, _w4a8_examples),
    LINEAR_W4A4.name: _online(LINEAR_W4A4, _w4a4_body, _int4_codes, _w4a4_examples),
}
