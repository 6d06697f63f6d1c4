"""The transform before the lattice E8, alone and behind every producer that it fuses with."""

__all__ = ["FUSED", "HADAMARD", "OPS"]

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto

from graphopt.core.body import BodyBuilder
from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.producers import PRODUCERS, Producer, example_rows
from graphopt.numerics.layers import GLUS
from graphopt.passes.vq import hadamard

_SIGNS = Param("signs", "(K',) int8: 1 or -1; K' at least K, a multiple of block")
_Z = Param("z", "(..., K') T")
_BLOCK = Attribute("block", 16, "size of a block, a power of two up to 65536")
_TRANSFORM = (
    "z = T((y padded with zeros * signs) H / sqrt(block)), H block-diagonal with blocks H[i, j] = (-1)^(number of "
    "common bits of i and j) (QuIP, 2023): float32 inside, one rounding to T at the end"
)


def _odd(b: BodyBuilder, x: str) -> Any:
    """1 where the whole number x is odd, else 0."""
    return b.op("Sub", x, b.op("Mul", b.op("Floor", b.op("Mul", x, b.const(0.5))), b.const(2.0)))


def _write_transform(b: BodyBuilder, y: str) -> None:
    """Write the output z of the value ``y`` (type T)."""
    x, channels, last = b.cast(y), b.size("signs", 0), b.ints(-1)
    block = b.op("Unsqueeze", b.attribute("block", AttributeProto.INT), b.ints(0))
    lead = b.op("Slice", b.op("Shape", x), b.ints(0), last)
    missing = b.op("Concat", lead, b.op("Sub", channels, b.size(y, -1)), axis=0)
    padded = b.op("Concat", x, b.op("Expand", b.const(0.0), missing), axis=-1)
    signs = b.op("DequantizeLinear", "signs", b.const(1.0), b.const(0, np.int8))
    blocks = b.op("Concat", lead, b.op("Div", channels, block), block, axis=0)
    turned = b.op("Reshape", b.op("Mul", padded, signs), blocks)
    index = b.op("Unsqueeze", b.cast(b.range(block)), b.ints(1))
    bit = _odd(b, b.op("Floor", b.op("Mul", index, b.const(0.5 ** np.arange(16)))))
    common = _odd(b, b.op("MatMul", bit, b.op("Transpose", bit, perm=[1, 0])))
    matrix = b.op("Sub", b.const(1.0), b.op("Mul", common, b.const(2.0)))
    size = b.op("Sqrt", b.cast(block))
    z = b.op("Div", b.op("MatMul", turned, matrix), size)
    b.cast_like(b.op("Reshape", z, b.op("Concat", lead, channels, axis=0)), y, out="z")


def _evaluate(y: np.ndarray, signs: np.ndarray, block: int) -> np.ndarray:
    return hadamard.transform(y, signs, block).astype(y.dtype)


def _signs(rng: np.random.Generator) -> np.ndarray:
    return (2 * rng.integers(0, 2, 96) - 1).astype(np.int8)


HADAMARD = OpSpec(
    name="VQHadamard",
    family="Hadamard",
    doc=f"{_TRANSFORM}, y = x.",
    inputs=(Param("x", "(..., K) T"), _SIGNS),
    outputs=(_Z,),
    attributes=(_BLOCK,),
    body=lambda b: _write_transform(b, "x"),
    evaluate=lambda x, signs, block=16: (_evaluate(x, signs, block),),
    examples=lambda rng, dtype: (example_rows(rng, dtype), _signs(rng)),
    plugin=True,
)


def _fused(producer: Producer) -> OpSpec:
    def body(b: BodyBuilder) -> None:
        value, like = producer.write(b)
        _write_transform(b, b.cast_like(value, like, out="y"))

    def evaluate(*inputs: np.ndarray, block: int = 16, **attributes: Any) -> tuple[np.ndarray, ...]:
        *operands, signs = inputs
        numbers = {name: value for name, value in attributes.items() if not name.startswith("emit_")}
        made = producer.evaluate(*operands, **numbers)
        return (_evaluate(made[-1], signs, block), *made)

    def examples(rng: np.random.Generator, dtype: Any) -> Sequence[np.ndarray]:
        return (*producer.examples(rng, dtype, example_rows), _signs(rng))

    return OpSpec(
        name=f"VQ{producer.name}Hadamard",
        family=producer.family,
        doc=f"{producer.formula}. Then {_TRANSFORM}.",
        inputs=(*producer.inputs, _SIGNS),
        outputs=(_Z, *producer.outputs),
        attributes=(_BLOCK, *producer.attributes),
        body=body,
        evaluate=evaluate,
        examples=examples,
        plugin=True,
    )


#: What transforms behind a producer, by the producer's name.
FUSED = {name: _fused(producer) for name, producer in PRODUCERS.items() if name not in GLUS.values()}

OPS = (HADAMARD, *FUSED.values())
