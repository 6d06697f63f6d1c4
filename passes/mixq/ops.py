"""The ops of MixQ: quantizing producers and the mixed-precision linear.

A quantizing op computes what its producer computes (a norm, a gated activation, ...), rounds it to the activation type
T, and hands out X_q, s_x and X_O; linears that read the same X share it. `_quantize_rows` is the common tail of all
bodies and `numerics.quantize_rows` its evaluator.
"""

__all__ = ["ADD_LAYER_NORM", "ADD_RMS_NORM", "GATED", "GELUS", "LAYER_NORM", "LINEAR", "OPS", "QUANTIZE", "RMS_NORM"]

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.passes.mixq import numerics

Arrays = tuple[np.ndarray, ...]

_XQ = Param("xq", "(..., K) int8: codes in -127..127, 0 in outlier channels")
_SX = Param("sx", "(..., 1) float32: scale of each token")
_XO = Param("xo", "(..., C) T: the outlier channels, 0 in padding")
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

_TAIL = "Then, per token, quantized as numerics.py says: X_q, s_x and X_O of the rounded value (MixQ, SC'24)."


def _quantize_rows(b: BodyBuilder, y: str) -> None:
    """Write the outputs xq, sx, xo for the value ``y`` (type T) and the input ``idx``. All arithmetic is float32."""
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
    q = b.const(127.0)
    b.first(b.op("Add", b.op("Div", amax, q), poison), out="sx")
    inverse = b.op("Where", b.op("Equal", amax, zero), zero, b.op("Div", q, amax))
    # QuantizeLinear with scale 1 is round-to-even and saturate; TensorRT imports it, a Cast to int8 it does not.
    b.op("QuantizeLinear", b.op("Mul", inner, inverse), b.const(1.0), b.const(0, np.int8), outputs=["xq"])
    gathered = b.op("Gather", x, index, axis=-1)
    b.cast_like(b.op("Where", b.op("Less", index, b.const(0, np.int64)), zero, gathered), y, out="xo")


def _emit(b: BodyBuilder, value: str, like: str) -> None:
    """Round the float32 ``value`` to T as the output y, and quantize it."""
    _quantize_rows(b, b.cast_like(value, like, out="y"))


def _norm_body(b: BodyBuilder, source: str, *, center: bool) -> None:
    x = b.cast(source)
    if center:
        x = b.op("Sub", x, b.reduce("Mean", x, -1))
    square = b.reduce("Mean", b.op("Mul", x, x), -1)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", square, b.attribute("epsilon"))))
    y = b.op("Mul", b.op("Mul", x, scale), b.cast("gamma"))
    _emit(b, b.op("Add", y, b.cast("beta")) if center else y, source)


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
    "Silu": (_silu_body, numerics.silu),
    "Gelu": (_gelu_body, numerics.gelu),
    "GeluTanh": (_gelu_tanh_body, numerics.gelu_tanh),
}


def _rows(rng: np.random.Generator, dtype: Any, *, tokens: int = 7, channels: int = 80) -> np.ndarray:
    """Return (tokens, channels) normal activations with three channels 20 to 60 times larger."""
    x = rng.standard_normal((tokens, channels))
    x[:, [3, 17, channels - 1]] *= rng.uniform(20, 60, 3)
    return x.astype(dtype)


def _indices() -> np.ndarray:
    return numerics.pad_indices(np.array([3, 17, 79]), 16)


def _vector(rng: np.random.Generator, dtype: Any, channels: int = 80) -> np.ndarray:
    return rng.uniform(0.5, 1.5, channels).astype(dtype)


def _quantize_body(b: BodyBuilder) -> None:
    _quantize_rows(b, "x")


QUANTIZE = OpSpec(
    name="MixQQuantize",
    family="Quantize",
    doc=f"Quantize x with nothing to fuse it into. {_TAIL}",
    inputs=(_X, _IDX),
    outputs=(_XQ, _SX, _XO),
    body=_quantize_body,
    evaluate=numerics.quantize_rows,
    examples=lambda rng, dtype: (_rows(rng, dtype), _indices()),
    plugin=True,
)


def _norm(*, center: bool, add: bool) -> OpSpec:
    kind = "LayerNorm" if center else "RMSNorm"

    def body(b: BodyBuilder) -> None:
        _norm_body(b, _add(b) if add else "x", center=center)

    def evaluate(x: np.ndarray, *rest: np.ndarray, epsilon: float = 1e-5, **_: int) -> Arrays:
        *weights, idx = rest
        if add:
            x = (x.astype(np.float32) + weights.pop(0).astype(np.float32)).astype(x.dtype)
        norm = numerics.layer_norm if center else numerics.rms_norm
        y = norm(x, *weights, epsilon)
        return (*numerics.quantize_rows(y, idx), *((x,) if add else ()), y)

    def examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        residual = [_rows(rng, dtype)] if add else []
        beta = [_vector(rng, dtype)] if center else []
        return (_rows(rng, dtype), *residual, _vector(rng, dtype), *beta, _indices())

    formula = "(s - mean) / sqrt(var + epsilon) * gamma + beta" if center else "s / sqrt(mean(s^2) + epsilon) * gamma"
    return OpSpec(
        name=f"MixQ{'Add' if add else ''}{kind}",
        family="Norm",
        doc=f"y = T({formula}) over the last axis, s = {'T(x + residual)' if add else 'x'}. {_TAIL}",
        inputs=(_X, *((_RESIDUAL,) if add else ()), _GAMMA, *((_BETA,) if center else ()), _IDX),
        outputs=(_XQ, _SX, _XO, *((_SUM,) if add else ()), _Y),
        attributes=(_EPSILON, *((_EMIT_SUM,) if add else ()), _EMIT_Y),
        body=body,
        evaluate=evaluate,
        examples=examples,
        plugin=True,
    )


def _activation(name: str, *, gate: bool) -> OpSpec:
    write, formula = _ACTIVATIONS[name]

    def body(b: BodyBuilder) -> None:
        if gate:
            _emit(b, b.op("Mul", write(b, b.cast("gate")), b.cast("up")), "gate")
        else:
            _emit(b, write(b, b.cast("x")), "x")

    def evaluate(x: np.ndarray, *rest: np.ndarray, **_: int) -> Arrays:
        *up, idx = rest
        factor = up[0] if gate else np.ones((), x.dtype)
        y = numerics.gated(formula, x, factor)
        return (*numerics.quantize_rows(y, idx), y)

    def examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        up = [_rows(rng, dtype)] if gate else []
        return (_rows(rng, dtype), *up, _indices())

    inputs = (Param("gate", "(..., K) T"), Param("up", "(..., K) T")) if gate else (_X,)
    return OpSpec(
        name=f"MixQ{'Gated' if gate else ''}{name}",
        family="GatedAct",
        doc=f"y = T({name.lower()}({'gate) * up' if gate else 'x)'}). {_TAIL}",
        inputs=(*inputs, _IDX),
        outputs=(_XQ, _SX, _XO, _Y),
        attributes=(_EMIT_Y,),
        body=body,
        evaluate=evaluate,
        examples=examples,
        plugin=True,
    )


RMS_NORM, ADD_RMS_NORM = _norm(center=False, add=False), _norm(center=False, add=True)
LAYER_NORM, ADD_LAYER_NORM = _norm(center=True, add=False), _norm(center=True, add=True)
#: By activation name.
GATED = {name: _activation(name, gate=True) for name in _ACTIVATIONS}
GELUS = {name: _activation(name, gate=False) for name in ("Gelu", "GeluTanh")}


def _linear_body(b: BodyBuilder) -> None:
    x = b.op("DequantizeLinear", "xq", b.const(1.0), b.const(0, np.int8))
    w = b.op("DequantizeLinear", "wq", "sw", axis=0)
    inner = b.op("Mul", b.op("MatMul", x, b.op("Transpose", w, perm=[1, 0])), "sx")
    outer = b.op("MatMul", b.cast("xo"), b.op("Transpose", b.cast("wo"), perm=[1, 0]))
    b.cast_like(b.op("Add", b.op("Add", inner, outer), b.cast("bias")), "xo", out="y")


def _linear_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    x, w = _rows(rng, dtype), (rng.standard_normal((24, 80)) * 0.1).astype(dtype)
    return (
        *numerics.quantize_rows(x, _indices()),
        *numerics.quantize_weight(w, _indices()),
        rng.standard_normal(24).astype(dtype),
    )


LINEAR = OpSpec(
    name="MixQLinear",
    family="Linear",
    doc="y = T(sx * sw * (xq @ wq^T) + xo @ wo^T + bias): int8 products in int32, outlier products in float32, one "
    "rounding to T at the end (MixQ, SC'24).",
    inputs=(
        _XQ,
        _SX,
        _XO,
        Param("wq", "(N, K) int8: row-major codes, 0 in outlier columns"),
        Param("sw", "(N,) float32: scale of each output channel"),
        Param("wo", "(N, C) T: original outlier columns, 0 in padding"),
        Param("bias", "(N,) T: zeros if the linear has none"),
    ),
    outputs=(Param("y", "(..., N) T"),),
    body=_linear_body,
    evaluate=lambda *inputs: (numerics.linear(*inputs),),
    examples=_linear_examples,
    plugin=True,
)

OPS: tuple[OpSpec, ...] = (
    QUANTIZE,
    RMS_NORM,
    ADD_RMS_NORM,
    LAYER_NORM,
    ADD_LAYER_NORM,
    *GATED.values(),
    *GELUS.values(),
    LINEAR,
)
