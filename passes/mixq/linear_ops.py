"""The mixed-precision linears of MixQ: w8a8, w4a8 and w4a4.

All three compute Y = T(s_x s_w (X_q W_cᵀ) + X_O W_Oᵀ + bias) with int8 weight codes W_c. In the 4-bit ones W_c is not
stored but made from 4-bit codes and integer group scales, W_c[n, k] = sg[k // group, n] · W_q4[n, k], so that every sum
of products stays an exact int32 one with one scale at the end, whatever the groups are: a kernel decodes while it loads
and is otherwise the one of w8a8 (numerics.py, "4-bit weights").

Each has a form that adds a residual before the one rounding, with "Add" at the end of its name, and both have one for
online prediction, with "Online" at the end: xo then holds the channels set, of which only those of idx have original
columns in wo; the others' are T(s_w W_c).
"""

__all__ = ["LINEAR", "LINEAR_W4A4", "LINEAR_W4A8", "ONLINE_LINEARS", "RESIDUAL_LINEARS"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import AttributeProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.producers import example_rows
from graphopt.numerics.packing import pack_int4, unpack_int4
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq.operands import IDX, SET, SX, XO, XQ, XQ4, example_indices
from graphopt.passes.mixq.prediction import write_columns

_SW = Param("sw", "(N,) float32: scale of each output channel")
_WO = Param("wo", "(N, C) T: original outlier columns, 0 in padding")
_BIAS = Param("bias", "(N,) T: zeros if the linear has none")
_RESIDUAL = Param("residual", "(..., N) T")
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


@dataclass(frozen=True)
class _Form:
    """What a form of a linear does besides: add a residual, have its outliers predicted online."""

    residual: bool = False
    online: bool = False

    @property
    def inputs(self) -> tuple[Param, ...]:
        """Those that follow the linear's own."""
        return (*([_RESIDUAL] if self.residual else []), *([IDX, SET] if self.online else []))


#: Writes the body of a form of a linear.
_Body = Callable[[BodyBuilder, _Form], None]


def _eight_bit_body(b: BodyBuilder, form: _Form) -> None:
    x = b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8))
    w = b.op("DequantizeLinear", "wq", "sw", axis=0)
    _add_rest(b, b.op("Mul", b.op("MatMul", x, b.op("Transpose", w, perm=[1, 0])), "sx"), form, lambda: w)


def _add_rest(b: BodyBuilder, inner: str, form: _Form, weight: Callable[[], str]) -> None:
    """Write y, given the integer product times its scales and what writes the dequantized weight (N, K) float32."""
    columns = write_columns(b, weight()) if form.online else "wo"
    outer = b.op("MatMul", b.cast("xo"), b.op("Transpose", b.cast(columns), perm=[1, 0]))
    total = b.op("Add", b.op("Add", inner, outer), b.cast("bias"))
    if form.residual:
        total = b.op("Add", total, b.cast(_RESIDUAL.name))
    b.cast_like(total, "xo", out="y")


def _four_bit_body(b: BodyBuilder, x: str, form: _Form) -> None:
    """Write y for the float32 codes ``x`` (..., columns); columns of wq4 beyond those are padding."""
    count = b.op("Gather", b.op("Shape", x), b.const([-1], np.int64), axis=0)
    first, one = b.const([0], np.int64), b.const([1], np.int64)
    codes = b.op("Slice", b.unpack_int4("wq4"), first, count, one, one)
    every = b.op("Range", b.const(0, np.int64), b.op("Squeeze", count, first), b.const(1, np.int64))
    group = b.op("Div", every, b.attribute("group", AttributeProto.INT))
    scales = b.op("Gather", b.op("DequantizeLinear", "sg", b.const(1.0), b.const(0, np.int8)), group, axis=0)
    w = b.op("Mul", b.op("Transpose", codes, perm=[1, 0]), scales)
    inner = b.op("Mul", b.op("Mul", b.op("MatMul", x, w), "sx"), "sw")
    _add_rest(b, inner, form, lambda: b.op("Transpose", b.op("Mul", w, "sw"), perm=[1, 0]))


def _w4a8_body(b: BodyBuilder, form: _Form) -> None:
    _four_bit_body(b, b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8)), form)


def _w4a4_body(b: BodyBuilder, form: _Form) -> None:
    _four_bit_body(b, b.unpack_int4("xq4"), form)


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
    body=lambda b: _eight_bit_body(b, _Form()),
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
    body=lambda b: _w4a8_body(b, _Form()),
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
    body=lambda b: _w4a4_body(b, _Form()),
    evaluate=_evaluate_w4a4,
    examples=_offline(_w4a4_examples),
    plugin=True,
)


def _int8_codes(given: dict[str, np.ndarray], _: int, __: int) -> np.ndarray:
    return given["wq"]


def _int4_codes(given: dict[str, np.ndarray], channels: int, group: int) -> np.ndarray:
    return numerics.grouped_codes(unpack_int4(given["wq4"], channels), given["sg"], group)


#: Returns W_c (N, K) int8 from a linear's inputs by name, K and the group.
_Codes = Callable[[dict[str, np.ndarray], int, int], np.ndarray]
_PARTS: dict[str, tuple[_Body, _Codes, _Examples]] = {
    LINEAR.name: (_eight_bit_body, _int8_codes, _eight_bit_examples),
    LINEAR_W4A8.name: (_w4a8_body, _int4_codes, _w4a8_examples),
    LINEAR_W4A4.name: (_w4a4_body, _int4_codes, _w4a4_examples),
}


def _formed(spec: OpSpec, form: _Form) -> OpSpec:
    """Return ``form`` of a linear."""
    body, codes, examples = _PARTS[spec.name]
    inputs = (*spec.inputs, *form.inputs)
    names = [p.name for p in inputs]

    def evaluate(*operands: np.ndarray, **attributes: int) -> tuple[np.ndarray, ...]:
        given = dict(zip(names, operands, strict=True))
        if form.online:
            indices, extended = given.pop(IDX.name), given.pop(SET.name)
            channels = np.maximum(extended, 0)
            wc = codes(given, int(channels.max(initial=0)) + 1, attributes.get("group", int(_GROUP.default)))
            dequantized = wc[:, channels].astype(np.float32) * given["sw"][:, None]
            given["wo"] = numerics.extend_columns(given["wo"], indices, extended, dequantized)
        return spec.evaluate(*given.values(), **attributes)

    def form_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        # Of the outliers 3, 17 and 79, one was not there when the weight was quantized; 20 is none but was predicted.
        indices = example_indices(known=not form.online)
        extended = numerics.pad_indices(np.array([3, 17, 20, 79]), 2 * numerics.CAPACITY_STEP)
        own = examples(rng, dtype, extended if form.online else indices, indices)
        residual = rng.standard_normal((len(own[0]), len(own[-1]))).astype(dtype)
        return (*own, *([residual] if form.residual else []), *([indices, extended] if form.online else []))

    doc = spec.doc.replace("+ bias", "+ bias + residual", 1) if form.residual else spec.doc
    if form.online:
        doc += " xo holds the channels set. Their columns are those of wo for channels in idx and "
        doc += "T(sw * wc[:, channel]) for others."
    return replace(
        spec,
        name=f"{spec.name}{'Add' if form.residual else ''}{'Online' if form.online else ''}",
        doc=doc,
        inputs=inputs,
        body=lambda b: body(b, form),
        evaluate=evaluate,
        examples=form_examples,
        _functions={},
    )


_PLAIN = (LINEAR, LINEAR_W4A8, LINEAR_W4A4)
#: The forms that add a residual, by the name of the op that does not.
RESIDUAL_LINEARS = {spec.name: _formed(spec, _Form(residual=True)) for spec in _PLAIN}
#: The forms for online prediction, by the name of the op without it.
ONLINE_LINEARS = {
    **{spec.name: _formed(spec, _Form(online=True)) for spec in _PLAIN},
    **{RESIDUAL_LINEARS[spec.name].name: _formed(spec, _Form(residual=True, online=True)) for spec in _PLAIN},
}
