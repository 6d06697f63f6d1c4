"""The ops of M-ANT: int8 quantization by group, and linears on float activations, on int8 ones with exact integer sums,
and on int8 ones with one product.

All linears read one storage of the weight (types.py says what codes mean):

    codes  two to a byte along K, in the order of `graphopt.numerics.packing`
    types  two to a byte along N, in the same order, one row for each group of columns
    scale  float16, one row for each group

which is 4 + 20 / group bits per weight: 4.3125 at 64. Decoding belongs to the load of a kernel; nothing decoded is
ever written to memory.
"""

__all__ = ["LINEAR", "LINEAR_INT8", "LINEAR_W4A8", "OPS", "QUANTIZE", "pack_types", "unpack_types"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics import affine
from graphopt.numerics.packing import pack_int4
from graphopt.passes.mant import linear_numerics
from graphopt.passes.mant.linear_numerics import pack_types, unpack_types
from graphopt.passes.mant.types import CODES, INT4_TYPE, MANT, TYPES, split_factors, split_tables

_CODES = Param(
    "codes",
    "(N, B) int8: a 4-bit code for each weight, bit 3 the sign and bits 0 to 2 the magnitude index, two to a byte "
    "(graphopt.numerics.packing): byte 16v + i holds column 32v + i in its low nibble and 32v + 16 + i in its high "
    "one; B = 16 ceil(K / 32); columns beyond K mean nothing",
)
_TYPES = Param(
    "types",
    "(G, 16 ceil(N / 32)) int8: type id of each group and output channel, two to a byte in the same order along N; "
    "G = ceil(K / group)",
)
_SCALE = Param("scale", "(G, N) float16, not negative")
_BIAS = Param("bias", "(N,) T: zeros if the linear has none")
_XQ = Param("xq", "(..., K) int8")
_SX = Param("sx", "(..., S) float32: scale of each token (S = 1), or of each token and group (S = G)")
_Y = Param("y", "(..., N) T")
_EXAMPLE_GROUP = 64
_EXACT = Attribute(
    "exact",
    0,
    "1 if kernels may not round weights before the product; else they may for many tokens, scale and all: to float16 "
    "(MANTLinearW4A8), to 127ths of the largest of their output channel (MANTLinearInt8)",
)
_GROUP = Attribute("group", _EXAMPLE_GROUP, "columns that share a type and a scale, a multiple of 32")


def _columns(b: BodyBuilder, x: str) -> tuple[str, str]:
    """Return the length K of the last axis of ``x``, shape (1,), and the group (K,) int64 of each column."""
    columns = b.op("Gather", b.op("Shape", x), b.const([-1], np.int64), axis=0)
    scalar = b.op("Squeeze", columns, b.const([0], np.int64))
    every = b.op("Range", b.const(0, np.int64), scalar, b.const(1, np.int64))
    return columns, b.op("Div", every, b.attribute("group", onnx.AttributeProto.INT))


def _weight(b: BodyBuilder, table: str, columns: str, group: str) -> str:
    """Return Ŵᵀ (K, N) float32, where ``table`` (16, 16) float32 is by type id and code."""
    first, one, channels = b.const([0], np.int64), b.const([1], np.int64), b.op("Shape", "bias")
    codes = b.op("Slice", b.unpack_int4("codes", signed=False), first, columns, one, one)
    ids = b.op("Slice", b.unpack_int4("types", signed=False), first, channels, one, one)
    row = b.op("Mul", b.op("Gather", ids, group, axis=0), b.const(float(CODES)))
    index = b.cast(b.op("Add", row, b.op("Transpose", codes, perm=[1, 0])), onnx.TensorProto.INT32)
    values = b.op("Gather", b.op("Reshape", table, b.const([-1], np.int64)), index, axis=0)
    return str(b.op("Mul", values, b.op("Gather", b.cast("scale"), group, axis=0)))


def _float_body(b: BodyBuilder) -> None:
    columns, group = _columns(b, "x")
    y = b.op("MatMul", b.cast("x"), _weight(b, b.cast("table"), columns, group))
    b.cast_like(b.op("Add", y, b.cast("bias")), "x", out="y")


def _integer_body(b: BodyBuilder, table: str) -> None:
    columns, group = _columns(b, "xq")
    x = b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8))
    scales = b.op("Gather", b.op("Shape", "sx"), b.const([-1], np.int64), axis=0)
    # One scale per token serves every group.
    place = b.op("Mod", group, scales)
    x = b.op("Mul", x, b.op("Gather", "sx", place, axis=-1))
    y = b.op("MatMul", x, _weight(b, table, columns, group))
    b.cast_like(b.op("Add", y, b.cast("bias")), "bias", out="y")


def _w4a8_body(b: BodyBuilder) -> None:
    _integer_body(b, b.const(MANT.values))


def _int8_body(b: BodyBuilder) -> None:
    _integer_body(b, b.op("DequantizeLinear", "table", b.const(1 / 128), b.const(0, np.int8)))


def _evaluate_float(*operands: np.ndarray, group: int = 64) -> tuple[np.ndarray]:
    return (linear_numerics.linear(*operands, group=group),)


def _evaluate_w4a8(*operands: np.ndarray, group: int = _EXAMPLE_GROUP, exact: int = 0) -> tuple[np.ndarray]:
    del exact  # an evaluator always is
    xq, sx, codes, types, scale, bias = operands
    tables = np.broadcast_to(split_tables()[:, None, :], (2, TYPES, CODES))
    factors = split_factors()
    return (linear_numerics.integer_linear(xq, sx, codes, types, scale, tables, factors, bias, group=group),)


def _evaluate_int8(*operands: np.ndarray, group: int = _EXAMPLE_GROUP, exact: int = 0) -> tuple[np.ndarray]:
    del exact
    xq, sx, codes, types, scale, table, bias = operands
    factors = np.full((1, TYPES), 1 / 128)
    return (linear_numerics.integer_linear(xq, sx, codes, types, scale, table[None], factors, bias, group=group),)


def _quantize_body(b: BodyBuilder) -> None:
    x, zero, one = b.cast("x"), b.const(0, np.int64), b.const(1, np.int64)
    columns, group = _columns(b, x)
    size = b.attribute("group", onnx.AttributeProto.INT)
    last = b.op("Sub", columns, one)
    first = b.op("Mul", b.op("Range", zero, b.op("Squeeze", b.op("Div", b.op("Add", last, size), size)), one), size)
    # The last group reads its last column again where columns are missing, which changes no maximum.
    place = b.op("Add", b.op("Unsqueeze", first, b.const([1], np.int64)), b.op("Range", zero, size, one))
    members = b.op("Gather", x, b.op("Min", place, last), axis=-1)
    last_axis = b.const([-1], np.int64)

    def of_groups(kind: str, values: str) -> str:
        return str(b.op("Squeeze", b.first(b.reduce(kind, values, -1)), last_axis))

    amax = of_groups("Max", b.op("Abs", members))
    # ONNX leaves the maximum of a NaN open: the sum of 0·x carries NaN and Inf into the scale.
    poison = of_groups("Sum", b.op("Mul", members, b.const(0.0)))
    q = b.const(float(affine.Q_MAX[8]))
    b.op("Add", b.op("Div", amax, q), poison, outputs=["sx"])
    inverse = b.op("Where", b.op("Equal", amax, b.const(0.0)), b.const(0.0), b.op("Div", q, amax))
    scaled = b.op("Mul", x, b.op("Gather", inverse, group, axis=-1))
    # QuantizeLinear with scale 1 is round-to-even and saturate, which TensorRT imports.
    b.op("QuantizeLinear", scaled, b.const(1.0), b.const(0, np.int8), outputs=["xq"])


def _evaluate_quantize(x: np.ndarray, *, group: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Absmax quantization (graphopt.numerics.affine) of each group of columns."""
    k = x.shape[-1]
    count = -(-k // group)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, count * group - k)]
    grouped = np.pad(x.astype(np.float32), padding).reshape(*x.shape[:-1], count, group)
    sx, inverse = affine.absmax_scale(grouped)
    xq = affine.quantize(grouped, inverse).reshape(*x.shape[:-1], count * group)
    return np.ascontiguousarray(xq[..., :k]), sx[..., 0]


def _stored_examples(rng: np.random.Generator, channels: int, columns: int) -> tuple[np.ndarray, ...]:
    groups = -(-columns // _EXAMPLE_GROUP)
    codes = rng.integers(-8, 8, (channels, columns)).astype(np.int8)
    ids = rng.integers(0, TYPES, (groups, channels))
    ids[:, 0] = INT4_TYPE
    scale = rng.uniform(0.01, 0.1, (groups, channels))
    return pack_int4(codes), pack_types(ids), scale.astype(np.float16)


def _rows(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    x = rng.standard_normal((7, 150))
    x[:, [3, 17, 149]] *= rng.uniform(20, 60, 3)
    return x.astype(dtype)


def _float_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    stored = _stored_examples(rng, 24, 150)
    return _rows(rng, dtype), *stored, MANT.values.astype(np.float16), rng.standard_normal(24).astype(dtype)


def _integer_examples(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, ...]:
    x = rng.integers(-127, 128, (7, 150)).astype(np.int8)
    sx = rng.uniform(0.001, 0.3, (7, 3)).astype(np.float32)
    sx[2, 1] *= 400
    return x, sx, *_stored_examples(rng, 24, 150)


QUANTIZE = OpSpec(
    name="MANTQuantize",
    family="Quantize",
    doc="xq = rint(x / sx), sx the largest magnitude of each token and group of columns over 127 (M-ANT, HPCA'25); one "
    "group for a group attribute of at least K. NaN and Inf make the scale of their group non-finite.",
    inputs=(Param("x", "(..., K) T"),),
    outputs=(
        Param("xq", "(..., K) int8: codes in -127..127"),
        Param("sx", "(..., G) float32: scale of each token and group; G = ceil(K / group)"),
    ),
    attributes=(_GROUP,),
    body=_quantize_body,
    evaluate=_evaluate_quantize,
    examples=lambda rng, dtype: (_rows(rng, dtype),),
)


def _damage(constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Type ids without a row in the table, half-defined rows, scales that are no numbers or negative
    (`OpSpec.damage`)."""
    scale, table = constants["scale"], constants.get("table")
    if not np.isfinite(scale).all():
        return "scale", "holds NaN or Inf"
    if (scale < 0).any():
        return "scale", "holds a negative number"
    if table is None:
        return None
    if table.dtype == np.int8:
        usable = table.any(axis=1)
    else:
        unknown = np.isnan(table.astype(np.float32))
        usable = ~unknown.any(axis=1)
        if (partly := unknown.any(axis=1) & ~unknown.all(axis=1)).any():
            return "table", f"holds NaN in row {int(np.argmax(partly))}"
    ids = unpack_types(constants["types"], scale.shape[1])
    unusable = np.argwhere(~np.isin(ids, np.flatnonzero(usable)))
    if not len(unusable):
        return None
    group, channel = (int(i) for i in unusable[0])
    where = f"for group {group} of output channel {channel}"
    return "types", f"holds type id {ids[group, channel]} {where}, which its table does not define"


LINEAR = OpSpec(
    name="MANTLinear",
    family="Linear",
    plugin=True,
    doc="y = T(x @ w^T + bias), w[n, k] = scale[k // group, n] * table[types[k // group, n], codes[n, k]]: products "
    "and sums in float32, one rounding to T at the end (M-ANT, HPCA'25).",
    inputs=(
        Param("x", "(..., K) T"),
        _CODES,
        _TYPES,
        _SCALE,
        Param("table", "(16, 16) float16: value by type id and code; NaN for ids that are not in use"),
        _BIAS,
    ),
    outputs=(_Y,),
    attributes=(_GROUP,),
    damage=_damage,
    body=_float_body,
    evaluate=_evaluate_float,
    examples=_float_examples,
)

LINEAR_W4A8 = OpSpec(
    name="MANTLinearW4A8",
    family="Linear",
    plugin=True,
    doc="y = T(sum over groups of sx * scale * f * ((a + 1) * sum(xq * s * i) + sum(xq * s * (2^i - i))) + bias), "
    "where s and i are sign and magnitude index of a code, a belongs to its type, and f is 1 over the power of two not "
    "below 7a + 128: exact int32 sums within a group, float32 outside, one rounding to T at the end. Type 15, INT4, is "
    "the first sum alone, times 1/8 (M-ANT, HPCA'25, with 2^i rewritten so that all operands fit int8).",
    inputs=(_XQ, _SX, _CODES, _TYPES, _SCALE, _BIAS),
    outputs=(_Y,),
    attributes=(_GROUP, _EXACT),
    damage=_damage,
    body=_w4a8_body,
    evaluate=_evaluate_w4a8,
    examples=lambda rng, dtype: (*_integer_examples(rng, dtype), rng.standard_normal(24).astype(dtype)),
)

LINEAR_INT8 = OpSpec(
    name="MANTLinearInt8",
    family="Linear",
    plugin=True,
    doc="y = T(sum over groups of sx * scale / 128 * sum(xq * table[type, code]) + bias): exact int32 sums within a "
    "group, float32 outside, one rounding to T at the end. The types were rounded to int8 before the weight was "
    "quantized, so that one product is all.",
    inputs=(
        _XQ,
        _SX,
        _CODES,
        _TYPES,
        _SCALE,
        Param("table", "(16, 16) int8: 128 times the value by type id and code; 0 for ids that are not in use"),
        _BIAS,
    ),
    outputs=(_Y,),
    attributes=(_GROUP, _EXACT),
    damage=_damage,
    body=_int8_body,
    evaluate=_evaluate_int8,
    examples=lambda rng, dtype: (
        *_integer_examples(rng, dtype),
        MANT.rounded().integers(),
        rng.standard_normal(24).astype(dtype),
    ),
)

OPS: tuple[OpSpec, ...] = (QUANTIZE, LINEAR, LINEAR_W4A8, LINEAR_INT8)
