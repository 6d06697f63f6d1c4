"""Producers by themselves: what they make, in T, for plugin ops that quantize nothing."""

__all__ = ["FUSED", "OPS"]

from typing import Any

import numpy as np

from graphopt.core.body import BodyBuilder
from graphopt.core.op import OpSpec, Param
from graphopt.core.producers import PRODUCERS, Producer, example_rows
from graphopt.numerics.layers import GLUS

_Y = Param("y", "(..., K) T")


def _fused(producer: Producer) -> OpSpec:
    def body(b: BodyBuilder) -> None:
        value, like = producer.write(b)
        b.cast_like(value, like, out="y")

    def evaluate(*inputs: np.ndarray, emit_sum: int = 0, **attributes: Any) -> tuple[np.ndarray, ...]:
        *total, y = producer.evaluate(*inputs, **attributes)
        return (y, *total)

    return OpSpec(
        name=f"Fused{producer.name}",
        family=producer.family,
        doc=f"{producer.formula}.",
        inputs=producer.inputs,
        outputs=(_Y, *producer.outputs[:-1]),
        attributes=tuple(a for a in producer.attributes if a.name != "emit_y"),
        body=body,
        evaluate=evaluate,
        examples=lambda rng, dtype: producer.examples(rng, dtype, example_rows),
        plugin=True,
    )


#: By the producer's name.
FUSED = {name: _fused(producer) for name, producer in PRODUCERS.items() if name not in GLUS.values()}

OPS = tuple(FUSED.values())
