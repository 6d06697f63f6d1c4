"""The ops of vector-quantized weights: trained codebooks, and the lattice E8; its transform is in hadamard_ops.py.

Codes are INT8 bytes at every boundary; how bits lie in them is in numerics.py. Bodies take bytes apart in float32,
which holds the 24 bits that a code of up to 16 bits can touch: TensorRT wants INT8 constants behind a DequantizeLinear.
"""

__all__ = ["LINEAR", "LINEAR_E8", "OPS"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.producers import example_rows
from graphopt.passes.vq import e8, hadamard_ops, numerics

_X = Param("x", "(..., K) T")
_SCALE = Param("scale", "(N,) float32: of each output channel")
_BIAS = Param("bias", "(N,) T: zeros if the linear has none")
_Y = Param("y", "(..., N) T")
_SUM = "float32 sums, one rounding to T at the end"


def _codes(b: BodyBuilder, count: str, bits: str) -> Any:
    """The first ``count`` codes of ``bits`` bits of each row of the input `codes`, (N, count) float32."""
    signed = b.op("DequantizeLinear", "codes", b.const(1.0), b.const(0, np.int8))
    byte = b.op("Where", b.op("Less", signed, b.const(0.0)), b.op("Add", signed, b.const(256.0)), signed)
    first = b.op("Mul", b.range(count), bits)
    eight, last = b.const(8, np.int64), b.op("Sub", b.size("codes", 1), b.ints(1))
    at = b.op("Div", first, eight)
    shift = b.op("Sub", first, b.op("Mul", at, eight))

    def part(offset: int, factor: float) -> Any:
        # Past the end of a row the last byte stands in: a code never reaches into it.
        index = b.op("Min", b.op("Add", at, b.const(offset, np.int64)), last) if offset else at
        return b.op("Mul", b.op("Gather", byte, index, axis=1), b.const(factor))

    word = b.op("Add", b.op("Add", part(0, 1.0), part(1, 256.0)), part(2, 65536.0))
    moved = b.op("Floor", b.op("Mul", word, b.op("Gather", b.const(0.5 ** np.arange(8)), shift)))
    limit = b.op("Gather", b.const(2.0 ** np.arange(numerics.MAX_BITS + 1)), bits)
    return b.op("Sub", moved, b.op("Mul", b.op("Floor", b.op("Div", moved, limit)), limit))


def _residuals_first(b: BodyBuilder, codes: str, positions: str, residuals: str) -> Any:
    """(N, J·r) -> (r, N, J): ONNX Runtime sums over a first axis a hundred times faster than over an inner one."""
    shape = b.op("Concat", b.size("codes", 0), positions, residuals, axis=0)
    return b.op("Transpose", b.op("Reshape", codes, shape), perm=[2, 0, 1])


def _product(b: BodyBuilder, vectors: str) -> None:
    """Write y for the weight that is the sum of vectors (r, N, J, v) over r; columns beyond K are padding."""
    flat = b.op("Flatten", b.reduce("Sum", vectors, 0, keepdims=0), axis=1)
    zero, one = b.ints(0), b.ints(1)
    c = b.op("Slice", flat, zero, b.size("x", -1), one, one)
    y = b.op("Mul", b.op("MatMul", b.cast("x"), b.op("Transpose", c, perm=[1, 0])), "scale")
    b.cast_like(b.op("Add", y, b.cast("bias")), "x", out="y")


def _positions(b: BodyBuilder, v: str) -> Any:
    """J = ceil(K / v), of shape [1]."""
    rounded = b.op("Sub", b.op("Add", b.size("x", -1), v), b.ints(1))
    return b.op("Div", rounded, v)


def _linear_body(b: BodyBuilder) -> None:
    v, residuals, entries = (b.size("codebooks", axis) for axis in (4, 2, 3))
    positions = _positions(b, v)
    bits = b.op("Unsqueeze", b.attribute("bits", AttributeProto.INT), b.const([0], np.int64))
    codes = b.cast(_codes(b, b.op("Mul", positions, residuals), bits), 7)
    codes = _residuals_first(b, codes, positions, residuals)
    g = b.op("Div", b.range(b.size("codes", 0)), b.attribute("tile_rows", AttributeProto.INT))
    h = b.op("Div", b.op("Mul", b.range(positions), v), b.attribute("tile_columns", AttributeProto.INT))
    tile = b.op("Add", b.op("Mul", b.op("Unsqueeze", g, b.ints(1)), b.size("codebooks", 1)), h)
    each = b.op("Unsqueeze", b.range(residuals), b.const([1, 2], np.int64))
    book = b.op("Add", b.op("Mul", tile, residuals), each)
    rows = b.op("Add", b.op("Mul", book, entries), codes)
    flat = b.op("Reshape", b.cast("codebooks"), b.op("Concat", b.ints(-1), v, axis=0))
    _product(b, b.op("Gather", flat, rows, axis=0))


def _lattice_body(b: BodyBuilder) -> None:
    residuals, v = b.size("ratios", 0), b.ints(e8.VECTOR)
    positions = _positions(b, v)
    codes = _codes(b, b.op("Mul", positions, residuals), b.const([e8.BITS], np.int64))
    codes = _residuals_first(b, codes, positions, residuals)
    high = b.op("Floor", b.op("Mul", codes, b.const(1 / 256)))
    row = b.cast(b.op("Sub", codes, b.op("Mul", high, b.const(256.0))), 7)
    points = b.op("Gather", b.const(e8.table()), row, axis=0)
    # What the high byte says is looked up as well: e8 writes points as table · signs + shift.
    signs, shifts = e8.signs_and_shifts()
    high = b.cast(high, 7)
    signed = b.op("Mul", points, b.op("Gather", b.const(signs), high, axis=0))
    whole = b.op("Add", signed, b.op("Gather", b.const(shifts), high, axis=0))
    _product(b, b.op("Mul", whole, b.op("Unsqueeze", "ratios", b.const([1, 2, 3], np.int64))))


def _evaluate(
    x: np.ndarray,
    codes: np.ndarray,
    codebooks: np.ndarray,
    *rest: np.ndarray,
    bits: int = 8,
    tile_rows: int = 256,
    tile_columns: int = 256,
) -> tuple[np.ndarray, ...]:
    residuals, v, k = codebooks.shape[2], codebooks.shape[4], x.shape[-1]
    positions = -(-k // v)
    picked = numerics.unpack_codes(codes, bits, positions * residuals).reshape(len(codes), positions, residuals)
    c = numerics.decode(picked, codebooks, tile_rows, tile_columns)[:, :k]
    return (numerics.linear(x, c, *rest),)


def _evaluate_lattice(
    x: np.ndarray, codes: np.ndarray, ratios: np.ndarray, scale: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, ...]:
    positions, residuals = -(-x.shape[-1] // e8.VECTOR), len(ratios)
    picked = numerics.unpack_codes(codes, e8.BITS, positions * residuals).reshape(len(codes), positions, residuals)
    c = (e8.decode_points(picked) * ratios[:, None]).sum(axis=2).reshape(len(codes), -1)[:, : x.shape[-1]]
    return (numerics.linear(x, c, scale, bias),)


def _examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    codebooks = rng.standard_normal((2, 2, 3, 256, 4))
    codebooks[..., rng.integers(0, 256, 4), :] *= 20
    codes = numerics.pack_codes(rng.integers(0, 256, (24, 60)), 8)
    scale = rng.uniform(0.01, 0.1, 24).astype(np.float32)
    return (
        example_rows(rng, dtype),
        codes,
        codebooks.astype(np.float16),
        scale,
        rng.standard_normal(24).astype(dtype),
    )


def _lattice_examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
    codes = numerics.pack_codes(rng.integers(0, 1 << e8.BITS, (24, 20)), e8.BITS)
    scale = rng.uniform(0.01, 0.1, 24).astype(np.float32)
    return (
        example_rows(rng, dtype),
        codes,
        np.array(e8.RATIOS, np.float32),
        scale,
        rng.standard_normal(24).astype(dtype),
    )


def _damage(constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Codebooks that have no entry for a code, or entries that are no numbers (`OpSpec.damage`)."""
    codebooks, bits = constants["codebooks"], int(attributes["bits"])
    if codebooks.shape[3] < 1 << bits:
        return "codebooks", f"has {codebooks.shape[3]} entries for codes of {bits} bits"
    return _no_number(constants)


def _no_number(constants: Mapping[str, np.ndarray], *_: Any) -> tuple[str, str] | None:
    wrong = (n for n in ("codebooks", "ratios", "scale") if n in constants and not np.isfinite(constants[n]).all())
    return next(((name, "holds NaN or Inf") for name in wrong), None)


LINEAR = OpSpec(
    name="VQLinear",
    family="Linear",
    doc="y = T(scale * (x @ c^T) + bias), c[n, v j + e] = sum over i of codebooks[n // tile_rows, v j // tile_columns, "
    f"i, code(n, j, i), e] (VQ-LLM, HPCA'25): {_SUM}.",
    inputs=(
        _X,
        Param(
            "codes",
            "(N, B) int8: a little-endian bit stream per row; code (j, i) takes `bits` bits from bit bits (r j + i) "
            "on; B a multiple of 16, 0 in padding",
        ),
        Param(
            "codebooks",
            "(Gn, Gk, r, 2^bits, v) float16: r codebooks for each tile of tile_rows x tile_columns weights",
        ),
        _SCALE,
        _BIAS,
    ),
    outputs=(_Y,),
    attributes=(
        Attribute("bits", 8, "b: bits of a code, 1 to 16"),
        Attribute("tile_rows", 256, "output channels that share codebooks; at least N where all do"),
        Attribute("tile_columns", 256, "input channels that share codebooks, a multiple of v; at least K where all do"),
    ),
    damage=_damage,
    body=_linear_body,
    evaluate=_evaluate,
    examples=_examples,
    example_attributes={"tile_rows": 16, "tile_columns": 48},
    plugin=True,
)

LINEAR_E8 = OpSpec(
    name="VQLinearE8",
    family="Linear",
    doc="y = T(scale * (x @ c^T) + bias), c[n, 8 j + e] = sum over i of ratios[i] * e8(code(n, j, i))[e], e8 the "
    f"points of graphopt.passes.vq.e8 (VQ-LLM, HPCA'25, with the lattice of QuIP#): {_SUM}.",
    inputs=(
        _X,
        Param(
            "codes",
            "(N, B) int8: little-endian 16-bit codes, (j, i) at byte 2 (r j + i); B a multiple of 16, 0 in padding",
        ),
        Param("ratios", "(r,) float32: size of each residual code's points"),
        _SCALE,
        _BIAS,
    ),
    outputs=(_Y,),
    damage=_no_number,
    body=_lattice_body,
    evaluate=_evaluate_lattice,
    examples=_lattice_examples,
    plugin=True,
)

OPS = (LINEAR, LINEAR_E8, *hadamard_ops.OPS)
