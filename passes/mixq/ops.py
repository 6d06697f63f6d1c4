"""The quantizing ops of MixQ, and the catalogue.

A quantizing op computes what its producer computes (a norm, a gated activation, ...), rounds it to the activation type
T, and hands out X_q, s_x and X_O; linears that read the same X share it. `_quantize_rows` is the common tail of all
bodies and `numerics.quantize_rows` its evaluator. Every op exists with 8-bit and with 4-bit codes; the 4-bit one has
the same inputs and attributes, "4" at the end of its name, and packed codes xq4 in place of xq. Each of these exists
once more with online prediction: "Online" at the end of its name, the attributes of `numerics.predict_outliers`, and a
last output set, the outlier channels that xq, sx and xo belong to.
"""

__all__ = ["FUSED", "LINEAR", "LINEAR_W4A4", "LINEAR_W4A8", "OPS", "QUANTIZE", "variant"]

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.producers import PRODUCERS, Producer, example_rows
from graphopt.numerics import affine
from graphopt.numerics.packing import PACK_STEP, pack_int4
from graphopt.passes.mixq import numerics
from graphopt.passes.mixq.linear_ops import LINEAR, LINEAR_W4A4, LINEAR_W4A8, ONLINE_LINEARS, RESIDUAL_LINEARS
from graphopt.passes.mixq.operands import IDX, SET, SX, XO, XQ, XQ4, example_indices
from graphopt.passes.mixq.prediction import CAPACITY, SIGMA, SIGMA_RMS, write_outlier_mask, write_prediction

Arrays = tuple[np.ndarray, ...]

_X = Param("x", "(..., K) T")


def _quantize_rows(b: BodyBuilder, y: str, indices: str, bits: int) -> None:
    """Write the outputs xq or xq4, sx, xo for the value ``y`` (type T); arithmetic in float32.

    ``indices`` names the outlier channels: (C,) int32, padded with -1.
    """
    x = b.cast(y)
    channels = b.op("Gather", b.op("Shape", x), b.const(-1, np.int64), axis=0)
    index, zero = b.cast(indices, 7), b.const(0.0)
    inner = b.op("Where", write_outlier_mask(b, indices, channels), zero, x)
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


@dataclass(frozen=True)
class _Tail:
    """What comes after y in every quantizing op: prediction if ``online``, then codes of ``bits``."""

    bits: int
    online: bool

    def name(self, base: str) -> str:
        return f"MixQ{base}{'' if self.bits == 8 else self.bits}{'Online' if self.online else ''}"

    def doc(self, formula: str) -> str:
        predicted = "the channels of numerics.predict_outliers" if self.online else "idx"
        return (
            f"{formula}. Then, per token, quantized to {self.bits} bits as numerics.py says: X_q, s_x and X_O of the "
            f"rounded value, the outlier channels O being {predicted} (MixQ, SC'24)."
        )

    def attributes(self, *own: Attribute) -> tuple[Attribute, ...]:
        return (*own, *((SIGMA, SIGMA_RMS, CAPACITY) if self.online else ()))

    def indices(self) -> np.ndarray:
        """Return example outlier channels; one is left to predict if ``online``."""
        return example_indices(known=not self.online)

    def outputs(self, *more: Param) -> tuple[Param, ...]:
        return (XQ if self.bits == 8 else XQ4, SX, XO, *more, *((SET,) if self.online else ()))

    def write(self, b: BodyBuilder, y: str) -> None:
        """Write xq or xq4, sx, xo (and set) of the value ``y``."""
        indices = "idx"
        if self.online:
            indices = "set"
            write_prediction(b, y)
        _quantize_rows(b, y, indices, self.bits)

    def emit(self, b: BodyBuilder, value: str, like: str) -> None:
        """Round the float32 ``value`` to T as the output y, and quantize it."""
        self.write(b, b.cast_like(value, like, out="y"))

    def evaluate(
        self,
        y: np.ndarray,
        indices: np.ndarray,
        *more: np.ndarray,
        sigma: float = SIGMA.default,
        sigma_rms: float = SIGMA_RMS.default,
        capacity: int = int(CAPACITY.default),
        **_: float,
    ) -> Arrays:
        """Return all outputs: those of `numerics.quantize_rows`, packed if 4 bits, ``more``, and set."""
        if self.online:
            indices = numerics.predict_outliers(y, indices, sigma=sigma, sigma_rms=sigma_rms, capacity=capacity)
        xq, sx, xo = numerics.quantize_rows(y, indices, self.bits)
        return (xq if self.bits == 8 else pack_int4(xq), sx, xo, *more, *((indices,) if self.online else ()))


def _quantize(tail: _Tail) -> OpSpec:
    return OpSpec(
        name=tail.name("Quantize"),
        family="Quantize",
        doc=tail.doc("Quantize y = x with nothing to fuse it into"),
        inputs=(_X, IDX),
        outputs=tail.outputs(),
        attributes=tail.attributes(),
        body=lambda b: tail.write(b, "x"),
        evaluate=tail.evaluate,
        examples=lambda rng, dtype: (example_rows(rng, dtype), tail.indices()),
        plugin=_has_plugin(tail),
    )


def _fused(tail: _Tail, producer: Producer) -> OpSpec:
    def body(b: BodyBuilder) -> None:
        tail.emit(b, *producer.write(b))

    def evaluate(*inputs: np.ndarray, epsilon: float | None = None, **attributes: Any) -> Arrays:
        *operands, idx = inputs
        made = producer.evaluate(*operands, **({} if epsilon is None else {"epsilon": epsilon}))
        return tail.evaluate(made[-1], idx, *made, **attributes)

    return OpSpec(
        name=tail.name(producer.name),
        family=producer.family,
        doc=tail.doc(producer.formula),
        inputs=(*producer.inputs, IDX),
        outputs=tail.outputs(*producer.outputs),
        attributes=tail.attributes(*producer.attributes),
        body=body,
        evaluate=evaluate,
        examples=lambda rng, dtype: (*producer.examples(rng, dtype, example_rows), tail.indices()),
        plugin=_has_plugin(tail),
    )


def _has_plugin(tail: _Tail) -> bool:
    return tail.bits == 8 or not tail.online


def _quantizing(tail: _Tail) -> tuple[OpSpec, ...]:
    """Return the quantizing ops that end in ``tail``, in an order that does not depend on it."""
    return _quantize(tail), *(_fused(tail, producer) for producer in PRODUCERS.values())


_QUANTIZING = {tail: _quantizing(tail) for tail in (_Tail(bits, online) for online in (False, True) for bits in (8, 4))}
_PLAIN = _QUANTIZING[_Tail(8, online=False)]

QUANTIZE = _PLAIN[0]
#: What quantizes behind a producer, by the producer's name.
FUSED = dict(zip(PRODUCERS, _PLAIN[1:], strict=True))

_LINEARS = (LINEAR, LINEAR_W4A8, LINEAR_W4A4, *RESIDUAL_LINEARS.values())
OPS: tuple[OpSpec, ...] = (*(op for ops in _QUANTIZING.values() for op in ops), *_LINEARS, *ONLINE_LINEARS.values())


def variant(spec: OpSpec, *, bits: int = 8, online: bool, residual: bool = False) -> OpSpec:
    """Return the op that does what ``spec`` does, with online prediction and codes of ``bits``.

    Args:
        spec: an 8-bit quantizing op, or any linear (which ``bits`` leaves as it is), both without prediction.
        bits: of the codes of activations.
        online: whether outliers are predicted.
        residual: whether a linear, given without, adds a residual.
    """
    if spec.name in ONLINE_LINEARS:
        spec = RESIDUAL_LINEARS[spec.name] if residual else spec
        return ONLINE_LINEARS[spec.name] if online else spec
    return _QUANTIZING[_Tail(bits, online)][_PLAIN.index(spec)]
