"""Online prediction in function bodies: which channels of an activation, and which columns of a weight, are outliers.

The evaluators are `numerics.predict_outliers` and `numerics.extend_columns`.
"""

__all__ = ["CAPACITY", "SIGMA", "SIGMA_RMS", "write_columns", "write_outlier_mask", "write_prediction"]

import numpy as np
from onnx import AttributeProto, TensorProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute
from graphopt.numerics import affine

#: Defaults are those of `graphopt.passes.mixq.config.OutlierConfig`.
SIGMA = Attribute("sigma", 0.0, "a channel outside idx with a value larger than this is an outlier; 0: no such bound")
SIGMA_RMS = Attribute("sigma_rms", 4.0, "the same, as a multiple of the token's rms; the larger bound decides")
CAPACITY = Attribute("capacity", 128, "outlier channels of a call; a multiple of 16, at least the size of idx")


def write_outlier_mask(b: BodyBuilder, indices: str, channels: str) -> str:
    """Return (K,) bool, True where the channel is in ``indices`` ((C,) int32); ``channels`` names K (int64)."""
    every = b.op("Range", b.const(0, np.int64), channels, b.const(1, np.int64))
    hits = b.op("Equal", every, b.op("Unsqueeze", b.cast(indices, TensorProto.INT64), b.const([1], np.int64)))
    return b.cast(b.reduce("Max", b.cast(hits), 0, keepdims=0), TensorProto.BOOL)


def write_prediction(b: BodyBuilder, y: str) -> None:
    """Write the output set for the value ``y`` (..., K) and the input idx."""
    shape = b.op("Shape", y)
    channels = b.op("Gather", shape, b.const(-1, np.int64), axis=0)
    lead = b.op("Slice", shape, b.const([0], np.int64), b.const([-1], np.int64))
    matrix = b.op("Concat", b.reduce("Prod", lead, 0), _vector(b, channels), axis=0)
    x = b.op("Reshape", b.cast(y), matrix, allowzero=1)
    known, zero = write_outlier_mask(b, "idx", channels), b.const(0.0)
    inner = b.op("Where", known, zero, x)
    magnitude = b.op("Abs", inner)
    amax = b.first(b.reduce("Max", magnitude, -1))
    q = b.const(float(affine.Q_MAX[8]))
    scale = b.op("Div", amax, q)
    inverse = b.op("Where", b.op("Equal", amax, zero), zero, b.op("Div", q, amax))
    codes = b.op("Round", b.op("Mul", magnitude, inverse))
    codes = b.op("Where", b.op("Less", codes, b.const(float(affine.Q_MAX[8] + 1))), codes, zero)  # NaN and Inf: 0
    integers = b.cast(codes, TensorProto.INT32)
    squares = b.cast(b.first(b.reduce("Sum", b.op("Mul", integers, integers), -1)))
    rms = b.op("Mul", scale, b.op("Sqrt", b.op("Div", squares, b.cast(channels))))
    bound = b.op("Max", b.attribute("sigma"), b.op("Mul", b.attribute("sigma_rms"), rms))
    finite = b.op("Equal", b.first(b.reduce("Sum", b.op("Mul", inner, zero), -1)), zero)
    usable = b.op("And", finite, b.op("Greater", bound, zero))
    ratio = b.op("Where", usable, b.op("Div", b.op("Mul", codes, scale), bound), zero)
    # A token of zeros, so that there is a largest value where there are no tokens.
    none = b.op("Expand", zero, b.op("Concat", b.const([1], np.int64), _vector(b, channels), axis=0))
    excess = b.reduce("Max", b.op("Concat", ratio, none, axis=0), 0, keepdims=0)
    score = b.op("Where", known, b.const(np.inf), excess)
    capacity = b.op("Reshape", b.attribute("capacity", AttributeProto.INT), b.const([1], np.int64))
    padded = b.op("Concat", score, b.op("Expand", zero, capacity), axis=0)
    largest, place = b.op("TopK", padded, capacity, axis=0, outputs=2)
    # Ascending, in float32, which every runtime sorts and which holds every channel number: those not chosen go last.
    chosen = b.op("Greater", largest, b.const(1.0))
    ascending, _ = b.op(
        "TopK", b.op("Where", chosen, b.cast(place), b.const(np.inf)), capacity, axis=0, largest=0, outputs=2
    )
    inside = b.op("Less", ascending, b.const(np.inf))
    b.op("Cast", b.op("Where", inside, ascending, b.const(-1.0)), to=TensorProto.INT32, outputs=["set"])


def _vector(b: BodyBuilder, scalar: str) -> str:
    """Return the int64 ``scalar`` as a vector of one element."""
    return str(b.op("Unsqueeze", scalar, b.const([0], np.int64)))


def write_columns(b: BodyBuilder, w: str) -> str:
    """Return the outlier columns (N, C') T of the input set, from the inputs wo (N, C) and idx.

    Args:
        b: of a linear's body.
        w: (N, K) float32, the dequantized weight, whose columns serve where there is no original one.
    """
    index, zero = b.cast("set", TensorProto.INT64), b.const(0, np.int64)
    dequantized = b.op("Gather", w, b.op("Max", index, zero), axis=1)
    column = b.op("Unsqueeze", index, b.const([1], np.int64))
    used = b.op("GreaterOrEqual", index, zero)
    same = b.op("Equal", column, b.cast("idx", TensorProto.INT64))
    same = b.cast(b.op("And", same, b.op("GreaterOrEqual", column, zero)))
    original = b.op("MatMul", b.cast("wo"), b.op("Transpose", same, perm=[1, 0]))
    fresh = b.op("And", used, b.op("Not", b.cast(b.reduce("Max", same, 1, keepdims=0), TensorProto.BOOL)))
    kept = b.op("Where", fresh, dequantized, b.const(0.0))
    return b.cast_like(b.op("Add", original, kept), "wo")
