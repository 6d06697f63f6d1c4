"""The canonical ops: what every exporter's spelling becomes, and what schemes and calibration look for.

None of them has a plugin. `legalize` writes their bodies back into the graph where no scheme lowered them. Attributes
and rounding points are stated in graphopt/numerics/layers.py, which evaluates them.
"""

__all__ = [
    "ATTENTION",
    "GATED",
    "GELUS",
    "LAYER_NORM",
    "LINEAR",
    "LINEAR_BIAS",
    "OPS",
    "RMS_NORM",
    "ROTARY",
]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.producers import ACTIVATIONS
from graphopt.numerics import layers

_X = Param("x", "(..., K) T")
_Y = Param("y", "(..., K) T")
_GAMMA = Param("gamma", "(K,) T")
_BETA = Param("beta", "(K,) T")
_EPSILON = Attribute("epsilon", 1e-5, "added to the variance or mean square")
_TRANS_W = Attribute("trans_w", 0, "0: w is (K, N); 1: w is (N, K)")
_LOWEST = float(np.finfo(np.float32).min)


def _rows(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    """Return normal activations (default (2, 5, 24)) with two channels 20 to 60 times larger."""
    x = rng.standard_normal(shape or (2, 5, 24))
    x[..., [3, -2]] *= rng.uniform(20, 60, 2)
    return np.asarray(x.astype(dtype))


def _vector(rng: np.random.Generator, dtype: Any, channels: int = 24) -> np.ndarray:
    return rng.uniform(0.5, 1.5, channels).astype(dtype)


def _weight(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    return (rng.standard_normal((24, 16)) / 5).astype(dtype)


def _branch(name: str, nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def _matmul(b: BodyBuilder, out: str) -> None:
    """Write ``out`` = x @ w, or x @ wᵀ where the attribute trans_w says so.

    The branches choose the weight and not the product: shape inference visits both, and only one of the products has
    matching sizes.
    """
    transposed = b.cast(b.attribute("trans_w", onnx.AttributeProto.INT), onnx.TensorProto.BOOL)
    branches = {
        "then_branch": _branch("weight_n_k", [helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0])], "w_t"),
        "else_branch": _branch("weight_k_n", [helper.make_node("Identity", ["w"], ["w_n"])], "w_n"),
    }
    b.op("MatMul", "x", b.op("If", transposed, **branches), outputs=[out])


def _linear_bias_body(b: BodyBuilder) -> None:
    _matmul(b, "product")
    b.op("Add", "product", "bias", outputs=["y"])


def _evaluate_linear(x: np.ndarray, w: np.ndarray, *bias: np.ndarray, trans_w: int = 0) -> tuple[np.ndarray]:
    return (layers.linear(x, w.T if trans_w else w, *bias),)


LINEAR = OpSpec(
    name="Linear",
    family="Linear",
    doc="y = x @ w, or x @ w^T if trans_w.",
    inputs=(_X, Param("w", "(K, N), or (N, K) if trans_w; T")),
    outputs=(Param("y", "(..., N) T"),),
    attributes=(_TRANS_W,),
    body=lambda b: _matmul(b, "y"),
    evaluate=_evaluate_linear,
    examples=lambda rng, dtype: (_rows(rng, dtype), _weight(rng, dtype)),
)

LINEAR_BIAS = OpSpec(
    name="LinearBias",
    family="Linear",
    doc="y = x @ w + bias, or x @ w^T + bias if trans_w.",
    inputs=(*LINEAR.inputs, Param("bias", "(N,) T")),
    outputs=LINEAR.outputs,
    attributes=(_TRANS_W,),
    body=_linear_bias_body,
    evaluate=_evaluate_linear,
    examples=lambda rng, dtype: (_rows(rng, dtype), _weight(rng, dtype), _vector(rng, dtype, 16)),
)


def _rms_norm_body(b: BodyBuilder) -> None:
    x = b.cast("x")
    square = b.reduce("Mean", b.op("Mul", x, x), -1)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", square, b.attribute("epsilon"))))
    b.cast_like(b.op("Mul", b.op("Mul", x, scale), b.cast("gamma")), "x", out="y")


def _layer_norm_body(b: BodyBuilder) -> None:
    x, gamma, beta = b.cast("x"), b.cast("gamma"), b.cast("beta")
    if b.opset >= 17:
        # The standard op rounds to T before it scales; on float32 inputs nothing is rounded until the end.
        y = b.op("LayerNormalization", x, gamma, beta, axis=-1)
        b.nodes[-1].attribute.add(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT)
    else:
        centered = b.op("Sub", x, b.reduce("Mean", x, -1))
        variance = b.reduce("Mean", b.op("Mul", centered, centered), -1)
        deviation = b.op("Sqrt", b.op("Add", variance, b.attribute("epsilon")))
        y = b.op("Add", b.op("Mul", b.op("Div", centered, deviation), gamma), beta)
    b.cast_like(y, "x", out="y")


RMS_NORM = OpSpec(
    name="RMSNorm",
    family="Norm",
    doc="y = T(x / sqrt(mean(x^2) + epsilon) * gamma) over the last axis (Zhang and Sennrich, 2019, eq. 4).",
    inputs=(_X, _GAMMA),
    outputs=(_Y,),
    attributes=(_EPSILON,),
    body=_rms_norm_body,
    evaluate=lambda x, gamma, epsilon=1e-5: (layers.rms_norm(x, gamma, epsilon),),
    examples=lambda rng, dtype: (_rows(rng, dtype), _vector(rng, dtype)),
)

LAYER_NORM = OpSpec(
    name="LayerNorm",
    family="Norm",
    doc="y = T((x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta) over the last axis (Ba et al., 2016, eq. 4).",
    inputs=(_X, _GAMMA, _BETA),
    outputs=(_Y,),
    attributes=(_EPSILON,),
    body=_layer_norm_body,
    evaluate=lambda x, gamma, beta, epsilon=1e-5: (layers.layer_norm(x, gamma, beta, epsilon),),
    examples=lambda rng, dtype: (_rows(rng, dtype), _vector(rng, dtype), _vector(rng, dtype)),
)


def _rotary_body(b: BodyBuilder) -> None:
    x = b.cast("x")
    width = b.op("Slice", b.op("Shape", x), b.const([-1], np.int64), b.const([2**31], np.int64))
    half = b.op("Div", width, b.const([2], np.int64))
    last = b.const([-1], np.int64)
    low = b.op("Slice", x, b.const([0], np.int64), half, last)
    high = b.op("Slice", x, half, width, last)
    turned = b.op("Concat", b.op("Neg", high), low, axis=-1)
    y = b.op("Add", b.op("Mul", x, b.cast("cos")), b.op("Mul", turned, b.cast("sin")))
    b.cast_like(y, "x", out="y")


def _rotary_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    angles = rng.uniform(-3, 3, (2, 1, 5, 4))
    angles = np.concatenate([angles, angles], axis=-1)
    return _rows(rng, dtype, 2, 3, 5, 8), np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


ROTARY = OpSpec(
    name="Rotary",
    family="Rotary",
    doc="y = T(x * cos + rotate_half(x) * sin), rotate_half(x) = concat(-x[D/2:], x[:D/2]) (Su et al., 2021, eq. 34).",
    inputs=(
        Param("x", "(B, H, S, D) T"),
        Param("cos", "broadcastable to x, D wide; T"),
        Param("sin", "broadcastable to x, D wide; T"),
    ),
    outputs=(Param("y", "(B, H, S, D) T"),),
    body=_rotary_body,
    evaluate=lambda x, cos, sin: (layers.rotary(x, cos, sin),),
    examples=_rotary_examples,
)


def _attention_body(b: BodyBuilder) -> None:
    def dims(tensor: str, start: int, stop: int) -> str:
        return str(b.op("Slice", b.op("Shape", tensor), b.const([start], np.int64), b.const([stop], np.int64)))

    # The query heads of one key/value head are stacked along S: one matrix product per key head, nothing is repeated.
    batch, heads, kv_heads = dims("q", 0, 1), dims("q", 1, 2), dims("k", 1, 2)
    rows = b.op("Mul", b.op("Div", heads, kv_heads), dims("q", 2, 3))
    scaled = b.cast_like(b.op("Mul", b.cast("q"), b.attribute("scale")), "q")
    stacked = b.op("Reshape", scaled, b.op("Concat", batch, kv_heads, rows, dims("q", 3, 4), axis=0))
    product = b.op("MatMul", stacked, b.op("Transpose", "k", perm=[0, 1, 3, 2]))
    per_head = b.op("Concat", dims("q", 0, 3), dims("k", 2, 3), axis=0)
    # Clamping keeps a fully masked row free of NaN without touching the scores; the Where below makes it 0. Both look
    # at the mask alone, so that layers with a common mask share them.
    mask = b.cast("mask")
    scores = b.op("Add", b.op("Reshape", b.cast(product), per_head), b.op("Max", mask, b.const(_LOWEST)))
    weights = b.cast_like(b.op("Softmax", scores, axis=-1), "q")
    weights = b.op("Reshape", weights, b.op("Concat", batch, kv_heads, rows, dims("k", 2, 3), axis=0))
    y = b.op("Reshape", b.op("MatMul", weights, "v"), b.op("Concat", dims("q", 0, 3), dims("v", 3, 4), axis=0))
    alive = b.op("Greater", b.first(b.reduce("Max", mask, -1)), b.const(-math.inf))
    # In float32, because Where has no bfloat16 before opset 16.
    b.cast_like(b.op("Where", alive, b.cast(y), b.const(0.0)), "q", out="y")


def _attention_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    mask = np.where(rng.random((2, 1, 5, 7)) < 0.3, -np.inf, 0.0)
    mask[0, 0, 2] = -np.inf
    mask[1, 0, :, 0] = 0.5
    query, key = rng.standard_normal((2, 6, 5, 8)), rng.standard_normal((2, 3, 7, 8))
    query[..., 3] *= 9
    return query.astype(dtype), key.astype(dtype), _rows(rng, dtype, 2, 3, 7, 10), mask.astype(dtype)


ATTENTION = OpSpec(
    name="Attention",
    family="Attention",
    doc="y = softmax(scale * q k^T + mask) v over L, softmax in float32 (Vaswani et al., 2017, eq. 1); query head h "
    "reads key/value head h // (Hq / Hkv); a row whose mask is -inf everywhere gives 0.",
    inputs=(
        Param("q", "(B, Hq, S, D) T"),
        Param("k", "(B, Hkv, L, D) T; Hq is a multiple of Hkv"),
        Param("v", "(B, Hkv, L, Dv) T"),
        Param("mask", "additive, broadcastable to (B, Hq, S, L); T"),
    ),
    outputs=(Param("y", "(B, Hq, S, Dv) T"),),
    attributes=(Attribute("scale", 1.0, "factor on q k^T"),),
    body=_attention_body,
    evaluate=lambda q, k, v, mask, scale=1.0: (layers.attention(q, k, v, mask, scale),),
    examples=_attention_examples,
)


def _gated(name: str) -> OpSpec:
    activation = ACTIVATIONS[name]

    def body(b: BodyBuilder) -> None:
        b.cast_like(b.op("Mul", activation.write(b, b.cast("gate")), b.cast("up")), "gate", out="y")

    return OpSpec(
        name=f"Gated{name}",
        family="GatedAct",
        doc=f"y = T({name.lower()}(gate) * up), {name.lower()}(x) = {activation.formula}.",
        inputs=(Param("gate", "(..., K) T"), Param("up", "(..., K) T")),
        outputs=(_Y,),
        body=body,
        evaluate=lambda gate, up: (layers.gated(activation.evaluate, gate, up),),
        examples=lambda rng, dtype: (_rows(rng, dtype), _rows(rng, dtype)),
    )


def _plain(name: str) -> OpSpec:
    activation = ACTIVATIONS[name]

    def body(b: BodyBuilder) -> None:
        b.cast_like(activation.write(b, b.cast("x")), "x", out="y")

    return OpSpec(
        name=name,
        family="GatedAct",
        doc=f"y = T({name.lower()}(x)), {name.lower()}(x) = {activation.formula}.",
        inputs=(_X,),
        outputs=(_Y,),
        body=body,
        evaluate=lambda x: (activation.evaluate(x.astype(np.float32)).astype(x.dtype),),
        examples=lambda rng, dtype: (_rows(rng, dtype),),
    )


#: Gated activations, and the activations that linears also read without a gate, by name.
GATED = {name: _gated(name) for name in ACTIVATIONS}
GELUS = {name: _plain(name) for name in ("Gelu", "GeluTanh")}

OPS: tuple[OpSpec, ...] = (
    LINEAR,
    LINEAR_BIAS,
    RMS_NORM,
    LAYER_NORM,
    ROTARY,
    ATTENTION,
    *GATED.values(),
    *GELUS.values(),
)
