"""The quantizing ops of MixQ, and the catalogue.

A quantizing op computes what its producer computes (a norm, a gated activation, ...), rounds it to the activation type
T, and hands out X_q, s_x and X_O; linears that read the same X share it. `_quantize_rows` is the common tail of all
bodies and `numerics.quantize_rows` its evaluator. Every op exists with 8-bit and with 4-bit codes; the 4-bit one has
the same inputs and attributes, "4" at the end of its name, and packed codes xq4 in place of xq.
"""

__all__ = [
    "ADD_LAYER_NORM",
    "ADD_RMS_NORM",
    "GATED",
    "GELUS",
    "LAYER_NORM",
    "LINEAR",
    "LINEAR_W4A4",
    "LINEAR_W4A8",
    "OPS",
    "QUANTIZE",
    "RMS_NORM",
    "with_codes_of",
]

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.numerics import affine, layers
from graphopt.numerics.packing import PACK_STEP, pack_int4
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq.linear_ops import LINEAR, LINEAR_W4A4, LINEAR_W4A8
from graphopt.passes.mixq.operands import SX, XO, XQ, XQ4, example_indices, example_rows

Arrays = tuple[np.ndarray, ...]

_SUM = Param("sum", "(..., K) T: x + residual; written only if emit_sum")
_Y = Param("y", "(..., K) T: what was quantized, for other readers; written only if emit_y")
_X = Param("x", "(..., K) T")
_RESIDUAL = Param("residual", "(..., K) T: added to x before the norm")
_GAMMA = Param("gamma", "(K,) T")
_BETA = Param("beta", "(K,) T")
_IDX = Param("idx", "(C,) int32: outlier channels, ascending, padded with -1; C a multiple of 16, at least 16")

_EPSILON = Attribute("epsilon", 1e-5, "added to the variance or mean square")
_EMIT_Y = Attribute("emit_y", 0, "1 if the output y is read by something else than the sharing linears")
_EMIT_SUM = Attribute("emit_sum", 0, "1 if the output sum is read")

_TAIL = (
    "Then, per token, quantized to {} bits as numerics.py says: X_q, s_x and X_O of the rounded value (MixQ, SC'24)."
)


def _quantize_rows(b: BodyBuilder, y: str, bits: int) -> None:
    """Write the outputs xq or xq4, sx, xo for the value ``y`` (type T) and the input ``idx``; arithmetic in float32."""
    x = b.cast(y)
    channels = b.op("Gather", b.op("Shape", x), b.const(-1, np.int64), axis=0)
    every = b.op("Range", b.const(0, np.int64), channels, b.const(1, np.int64))
    index = b.cast("idx", 7)
    hits = b.op("Equal", every, b.op("Unsqueeze", index, b.const([1], np.int64)))
    is_outlier = b.cast(b.reduce("Max", b.cast(hits), 0, keepdims=0), 9)
    zero = b.const(0.0)
    inner = b.op("Where", is_outlier, zero, x)
    amax = b.reduce("Max", b.op("Abs", inner), -1)
    # ONNX leaves the maximum of a NaN open: the sum of 0·x carries NaN and Inf into the scale of their row.
    poison = b.reduce("Sum", b.op("Mul", inner, zero), -1)
    q = b.const(float(affine.Q_MAX[bits]))
    b.first(b.op("Add", b.op("Div", amax, q), poison), out="sx")
    inverse = b.op("Where", b.op("Equal", amax, zero), zero, b.op("Div", q, amax))
    scaled = b.op("Mul", inner, inverse)
    if bits == 4:
        scaled = _packed(b, b.op("Round", scaled), channels)
    # QuantizeLinear with scale 1 is round-to-even and saturate; TensorRT imports it, a Cast to int8 it does not.
    b.op("QuantizeLinear", scaled, b.const(1.0), b.const(0, np.int8), outputs=["xq4" if bits == 4 else "xq"])
    gathered = b.op("Gather", x, index, axis=-1)
    b.cast_like(b.op("Where", b.op("Less", index, b.const(0, np.int64)), zero, gathered), y, out="xo")


def _packed(b: BodyBuilder, codes: str, channels: str) -> str:
    """Return the bytes of `pack_int4` as float32 values in -128..127, from float32 ``codes`` (..., ``channels``)."""
    step, half, zero = b.const(PACK_STEP, np.int64), b.const(PACK_STEP // 2, np.int64), b.const(0.0)
    vectors = b.op("Div", b.op("Add", channels, b.const(PACK_STEP - 1, np.int64)), step)
    byte = b.op("Range", b.const(0, np.int64), b.op("Mul", vectors, half), b.const(1, np.int64))
    first = b.op("Add", byte, b.op("Mul", b.op("Div", byte, half), half))

    def nibble(index: str) -> str:
        inside = b.op("Less", index, channels)
        # Padding reads channel 0, since an index must exist, and drops it.
        value = b.op("Gather", codes, b.op("Mul", index, b.cast(inside, 7)), axis=-1)
        return str(b.op("Where", inside, value, zero))

    low, high, sixteen = nibble(first), nibble(b.op("Add", first, half)), b.const(16.0)
    borrow = b.op("Mul", b.op("Floor", b.op("Mul", low, b.const(1 / 16))), sixteen)
    return str(b.op("Add", b.op("Mul", high, sixteen), b.op("Sub", low, borrow)))


def _emit(b: BodyBuilder, value: str, like: str, bits: int) -> None:
    """Round the float32 ``value`` to T as the output y, and quantize it."""
    _quantize_rows(b, b.cast_like(value, like, out="y"), bits)


def _norm_body(b: BodyBuilder, source: str, bits: int, *, center: bool) -> None:
    x = b.cast(source)
    if center:
        x = b.op("Sub", x, b.reduce("Mean", x, -1))
    square = b.reduce("Mean", b.op("Mul", x, x), -1)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", square, b.attribute("epsilon"))))
    y = b.op("Mul", b.op("Mul", x, scale), b.cast("gamma"))
    _emit(b, b.op("Add", y, b.cast("beta")) if center else y, source, bits)


def _add(b: BodyBuilder) -> str:
    """Write the output sum = T(x + residual)."""
    return b.cast_like(b.op("Add", b.cast("x"), b.cast("residual")), "x", out="sum")


def _silu_body(b: BodyBuilder, x: str) -> str:
    return str(b.op("Mul", x, b.op("Sigmoid", x)))


def _gelu_body(b: BodyBuilder, x: str) -> str:
    erf = b.op("Erf", b.op("Mul", x, b.const(1 / math.sqrt(2.0))))
    return str(b.op("Mul", b.op("Mul", x, b.const(0.5)), b.op("Add", erf, b.const(1.0))))


def _gelu_tanh_body(b: BodyBuilder, x: str) -> str:
    cube = b.op("Mul", b.op("Mul", x, x), x)
    inner = b.op("Add", x, b.op("Mul", cube, b.const(0.044715)))
    tanh = b.op("Tanh", b.op("Mul", inner, b.const(math.sqrt(2.0 / math.pi))))
    return str(b.op("Mul", b.op("Mul", x, b.const(0.5)), b.op("Add", tanh, b.const(1.0))))


_ACTIVATIONS: dict[str, tuple[Callable[[BodyBuilder, str], str], Callable[[np.ndarray], np.ndarray]]] = {
    "Silu": (_silu_body, layers.silu),
    "Gelu": (_gelu_body, layers.gelu),
    "GeluTanh": (_gelu_tanh_body, layers.gelu_tanh),
}


def _vector(rng: np.random.Generator, dtype: Any, channels: int = 80) -> np.ndarray:
    return rng.uniform(0.5, 1.5, channels).astype(dtype)


def _outputs(bits: int, *more: Param) -> tuple[Param, ...]:
    return (XQ if bits == 8 else XQ4, SX, XO, *more)


def _name(base: str, bits: int) -> str:
    return f"MixQ{base}{'' if bits == 8 else bits}"


def _quantized(y: np.ndarray, indices: np.ndarray, bits: int) -> Arrays:
    """Evaluate the tail: `numerics.quantize_rows`, packed if 4 bits."""
    xq, sx, xo = numerics.quantize_rows(y, indices, bits)
    return xq if bits == 8 else pack_int4(xq), sx, xo


def _quantize(bits: int) -> OpSpec:
    return OpSpec(
        name=_name("Quantize", bits),
        family="Quantize",
        doc=f"Quantize x with nothing to fuse it into. {_TAIL.format(bits)}",
        inputs=(_X, _IDX),
        outputs=_outputs(bits),
        body=lambda b: _quantize_rows(b, "x", bits),
        evaluate=lambda x, idx: _quantized(x, idx, bits),
        examples=lambda rng, dtype: (example_rows(rng, dtype), example_indices()),
        plugin=bits == 8,
    )


def _norm(bits: int, *, center: bool, add: bool) -> OpSpec:
    kind = "LayerNorm" if center else "RMSNorm"

    def body(b: BodyBuilder) -> None:
        _norm_body(b, _add(b) if add else "x", bits, center=center)

    def evaluate(x: np.ndarray, *rest: np.ndarray, epsilon: float = 1e-5, **_: int) -> Arrays:
        *weights, idx = rest
        if add:
            x = (x.astype(np.float32) + weights.pop(0).astype(np.float32)).astype(x.dtype)
        norm: Callable[..., np.ndarray] = layers.layer_norm if center else layers.rms_norm
        y = norm(x, *weights, epsilon)
        return (*_quantized(y, idx, bits), *((x,) if add else ()), y)

    def examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        residual = [example_rows(rng, dtype)] if add else []
        beta = [_vector(rng, dtype)] if center else []
        return (example_rows(rng, dtype), *residual, _vector(rng, dtype), *beta, example_indices())

    formula = "(s - mean) / sqrt(var + epsilon) * gamma + beta" if center else "s / sqrt(mean(s^2) + epsilon) * gamma"
    return OpSpec(
        name=_name(f"{'Add' if add else ''}{kind}", bits),
        family="Norm",
        doc=f"y = T({formula}) over the last axis, s = {'T(x + residual)' if add else 'x'}. {_TAIL.format(bits)}",
        inputs=(_X, *((_RESIDUAL,) if add else ()), _GAMMA, *((_BETA,) if center else ()), _IDX),
        outputs=_outputs(bits, *((_SUM,) if add else ()), _Y),
        attributes=(_EPSILON, *((_EMIT_SUM,) if add else ()), _EMIT_Y),
        body=body,
        evaluate=evaluate,
        examples=examples,
        plugin=bits == 8,
    )


def _activation(bits: int, name: str, *, gate: bool) -> OpSpec:
    write, formula = _ACTIVATIONS[name]

    def body(b: BodyBuilder) -> None:
        if gate:
            _emit(b, b.op("Mul", write(b, b.cast("gate")), b.cast("up")), "gate", bits)
        else:
            _emit(b, write(b, b.cast("x")), "x", bits)

    def evaluate(x: np.ndarray, *rest: np.ndarray, **_: int) -> Arrays:
        *up, idx = rest
        factor = up[0] if gate else np.ones((), x.dtype)
        y = layers.gated(formula, x, factor)
        return (*_quantized(y, idx, bits), y)

    def examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        up = [example_rows(rng, dtype)] if gate else []
        return (example_rows(rng, dtype), *up, example_indices())

    inputs = (Param("gate", "(..., K) T"), Param("up", "(..., K) T")) if gate else (_X,)
    return OpSpec(
        name=_name(f"{'Gated' if gate else ''}{name}", bits),
        family="GatedAct",
        doc=f"y = T({name.lower()}({'gate) * up' if gate else 'x)'}). {_TAIL.format(bits)}",
        inputs=(*inputs, _IDX),
        outputs=_outputs(bits, _Y),
        attributes=(_EMIT_Y,),
        body=body,
        evaluate=evaluate,
        examples=examples,
        plugin=bits == 8,
    )


def _quantizing(bits: int) -> tuple[OpSpec, ...]:
    """Return the ten quantizing ops with codes of ``bits``, in an order that does not depend on them."""
    return (
        _quantize(bits),
        *(_norm(bits, center=center, add=add) for center in (False, True) for add in (False, True)),
        *(_activation(bits, name, gate=True) for name in _ACTIVATIONS),
        *(_activation(bits, name, gate=False) for name in ("Gelu", "GeluTanh")),
    )


_EIGHT, _FOUR = _quantizing(8), _quantizing(4)

QUANTIZE, RMS_NORM, ADD_RMS_NORM, LAYER_NORM, ADD_LAYER_NORM = _EIGHT[:5]
#: By activation name.
GATED = dict(zip(_ACTIVATIONS, _EIGHT[5:8], strict=True))
GELUS = dict(zip(("Gelu", "GeluTanh"), _EIGHT[8:], strict=True))

OPS: tuple[OpSpec, ...] = (*_EIGHT, LINEAR, *_FOUR, LINEAR_W4A8, LINEAR_W4A4)


def with_codes_of(bits: int, spec: OpSpec) -> OpSpec:
    """Return the quantizing op that computes what ``spec``, one of the 8-bit ones, does, with codes of ``bits``."""
    return spec if bits == 8 else _FOUR[_EIGHT.index(spec)]
