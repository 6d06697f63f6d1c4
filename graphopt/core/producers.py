"""Producers: what a scheme's op takes over from the canonical op before it, so that one launch reads its inputs.

    y = T(producer(x or gate, [residual or up], [gamma], [beta]))

A scheme's fused op is a producer and a tail of its own (quantize, transform), which starts from y. Bodies and
evaluators of all of them come from here; they mean what graphopt.numerics.layers says.
"""

__all__ = ["ACTIVATIONS", "PRODUCERS", "Activation", "Producer", "example_rows"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, Param
from graphopt.numerics import layers

Arrays = tuple[np.ndarray, ...]
Rows = Callable[[np.random.Generator, Any], np.ndarray]

_X = Param("x", "(..., K) T")
_RESIDUAL = Param("residual", "(..., K) T: added to x before the norm")
_GAMMA = Param("gamma", "(K,) T")
_BETA = Param("beta", "(K,) T")
_SUM = Param("sum", "(..., K) T: x + residual; written only if emit_sum")
_Y = Param("y", "(..., K) T: what the op goes on with, for other readers; written only if emit_y")

_EPSILON = Attribute("epsilon", 1e-5, "added to the variance or mean square")
_EMIT_Y = Attribute("emit_y", 0, "1 if the output y is read by something else than the op's own linears")
_EMIT_SUM = Attribute("emit_sum", 0, "1 if the output sum is read")


@dataclass(frozen=True)
class Activation:
    """An elementwise function of float32 values.

    Attributes:
        write: appends it to a body.
        evaluate: in numpy.
        formula: in words, with its source.
    """

    write: Callable[[BodyBuilder, str], str]
    evaluate: Callable[[np.ndarray], np.ndarray]
    formula: str


@dataclass(frozen=True)
class Producer:
    """A producer.

    Attributes:
        name: what it is called in the names of fused ops; that of the canonical op where there is one.
        family: as `OpSpec.family`.
        formula: of y.
        inputs: before those of the tail.
        outputs: after those of the tail: sum of a norm behind a residual, and y.
        attributes: epsilon of norms, and which outputs are wanted.
        write: appends it to a body, writing sum; returns y before it is rounded, float32, and a value of type T.
        evaluate: ``(*inputs, epsilon) -> outputs``.
        examples: inputs, made from a function that returns rows.
    """

    name: str
    family: str
    formula: str
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]
    attributes: tuple[Attribute, ...]
    write: Callable[[BodyBuilder], tuple[str, str]]
    evaluate: Callable[..., Arrays]
    examples: Callable[[np.random.Generator, Any, Rows], Sequence[np.ndarray]]


def example_rows(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    """Return (7, 80) normal activations with three channels 20 to 60 times larger."""
    x = rng.standard_normal((7, 80))
    x[:, [3, 17, 79]] *= rng.uniform(20, 60, 3)
    return x.astype(dtype)


def _silu(b: BodyBuilder, x: str) -> str:
    return str(b.op("Mul", x, b.op("Sigmoid", x)))


def _gelu(b: BodyBuilder, x: str) -> str:
    erf = b.op("Erf", b.op("Mul", x, b.const(1 / math.sqrt(2.0))))
    return str(b.op("Mul", b.op("Mul", x, b.const(0.5)), b.op("Add", erf, b.const(1.0))))


def _gelu_tanh(b: BodyBuilder, x: str) -> str:
    cube = b.op("Mul", b.op("Mul", x, x), x)
    inner = b.op("Add", x, b.op("Mul", cube, b.const(0.044715)))
    tanh = b.op("Tanh", b.op("Mul", inner, b.const(math.sqrt(2.0 / math.pi))))
    return str(b.op("Mul", b.op("Mul", x, b.const(0.5)), b.op("Add", tanh, b.const(1.0))))


ACTIVATIONS = {
    "Silu": Activation(_silu, layers.silu, "x * sigmoid(x) (Elfwing et al., 2017, eq. 5)"),
    "Gelu": Activation(_gelu, layers.gelu, "x/2 * (1 + erf(x / sqrt(2))) (Hendrycks and Gimpel, 2016)"),
    "GeluTanh": Activation(_gelu_tanh, layers.gelu_tanh, "x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) (ibid.)"),
}


def _write_norm(b: BodyBuilder, *, center: bool, add: bool) -> tuple[str, str]:
    source = b.cast_like(b.op("Add", b.cast("x"), b.cast("residual")), "x", out="sum") if add else "x"
    x = b.cast(source)
    if center:
        x = b.op("Sub", x, b.reduce("Mean", x, -1))
    square = b.reduce("Mean", b.op("Mul", x, x), -1)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", square, b.attribute("epsilon"))))
    y = b.op("Mul", b.op("Mul", x, scale), b.cast("gamma"))
    return b.op("Add", y, b.cast("beta")) if center else y, source


def _evaluate_norm(x: np.ndarray, *rest: np.ndarray, center: bool, add: bool, epsilon: float = 1e-5) -> Arrays:
    weights = list(rest)
    if add:
        x = (x.astype(np.float32) + weights.pop(0).astype(np.float32)).astype(x.dtype)
    norm: Callable[..., np.ndarray] = layers.layer_norm if center else layers.rms_norm
    y = norm(x, *weights, epsilon)
    return (x, y) if add else (y,)


def _norm(*, center: bool, add: bool) -> Producer:
    def examples(rng: np.random.Generator, dtype: Any, rows: Rows) -> Sequence[np.ndarray]:
        x = [rows(rng, dtype) for _ in range(1 + add)]
        return (*x, *(rng.uniform(0.5, 1.5, x[0].shape[-1:]).astype(dtype) for _ in range(1 + center)))

    formula = "(s - mean) / sqrt(var + epsilon) * gamma + beta" if center else "s / sqrt(mean(s^2) + epsilon) * gamma"
    return Producer(
        name=f"{'Add' if add else ''}{'LayerNorm' if center else 'RMSNorm'}",
        family="Norm",
        formula=f"y = T({formula}) over the last axis, s = {'T(x + residual)' if add else 'x'}",
        inputs=(_X, *((_RESIDUAL,) if add else ()), _GAMMA, *((_BETA,) if center else ())),
        outputs=(*((_SUM,) if add else ()), _Y),
        attributes=(_EPSILON, *((_EMIT_SUM,) if add else ()), _EMIT_Y),
        write=partial(_write_norm, center=center, add=add),
        evaluate=partial(_evaluate_norm, center=center, add=add),
        examples=examples,
    )


def _activation(name: str, *, gate: bool) -> Producer:
    activation = ACTIVATIONS[name]

    def write(b: BodyBuilder) -> tuple[str, str]:
        if gate:
            return str(b.op("Mul", activation.write(b, b.cast("gate")), b.cast("up"))), "gate"
        return activation.write(b, b.cast("x")), "x"

    def evaluate(x: np.ndarray, *up: np.ndarray) -> Arrays:
        factor = up[0] if gate else np.ones((), x.dtype)
        return (layers.gated(activation.evaluate, x, factor),)

    return Producer(
        name=f"{'Gated' if gate else ''}{name}",
        family="GatedAct",
        formula=f"y = T({name.lower()}({'gate) * up' if gate else 'x)'})",
        inputs=(Param("gate", "(..., K) T"), Param("up", "(..., K) T")) if gate else (_X,),
        outputs=(_Y,),
        attributes=(_EMIT_Y,),
        write=write,
        evaluate=evaluate,
        examples=lambda rng, dtype, rows: [rows(rng, dtype) for _ in range(1 + gate)],
    )


def _glu(name: str) -> Producer:
    """Return the gated activation ``name`` of one input that holds gate and up: what a merged linear makes."""
    activation = ACTIVATIONS[name]

    def write(b: BodyBuilder) -> tuple[str, str]:
        last, first, two = b.ints(-1), b.ints(0), b.ints(2)
        whole = b.op("Gather", b.op("Shape", "gate_up"), last, axis=0)
        half = b.op("Div", whole, two)
        gate = b.cast(b.op("Slice", "gate_up", first, half, last))
        up = b.cast(b.op("Slice", "gate_up", half, whole, last))
        return b.op("Mul", activation.write(b, gate), up), "gate_up"

    return Producer(
        name=layers.GLUS[name],
        family="GatedAct",
        formula=f"y = T({name.lower()}(gate) * up), gate and up being the halves of gate_up",
        inputs=(Param("gate_up", "(..., 2K) T: the gate, then up"),),
        outputs=(_Y,),
        attributes=(_EMIT_Y,),
        write=write,
        evaluate=lambda gate_up: (layers.gated(activation.evaluate, *np.split(gate_up, 2, axis=-1)),),
        examples=lambda rng, dtype, rows: [np.concatenate([rows(rng, dtype) for _ in range(2)], axis=-1)],
    )


#: By name, in the order of the numbers that the C API gives them.
PRODUCERS = {
    producer.name: producer
    for producer in (
        *(_norm(center=center, add=add) for center in (False, True) for add in (False, True)),
        *(_activation(name, gate=True) for name in ACTIVATIONS),
        *(_activation(name, gate=False) for name in ("Gelu", "GeluTanh")),
        *(_glu(name) for name in ACTIVATIONS),
    )
}
