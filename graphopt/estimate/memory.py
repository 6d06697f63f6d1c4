"""Tiles of a matrix product and the traffic of DRAM and buffers that they cause.

A tile of m x n x k elements must fit: n k weights, m k activations and m n partial sums, each into half of its buffer
(the other half is being filled). Weights stay while activations pass (outer loop over n), or the reverse; of the
tilings by powers of two, the one with the least DRAM traffic is taken.
"""

__all__ = ["Traffic", "attention_traffic", "buffer_energy", "linear_traffic"]

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.errors import RecipeError
from graphopt.estimate.array import Geometry, Product
from graphopt.estimate.parameters import Parameters


@dataclass(frozen=True)
class Traffic:
    """Bits to and from DRAM."""

    weights: float = 0.0
    activations: float = 0.0
    outputs: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.activations + self.outputs + self.cache

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.weights + other.weights,
            self.activations + other.activations,
            self.outputs + other.outputs,
            self.cache + other.cache,
        )


def _half(capacity: float) -> float:
    """Bits of half a buffer of ``capacity`` bytes."""
    return capacity * 8 / 2


def _sizes(limit: int) -> Iterator[int]:
    """Powers of two below ``limit``, and ``limit``."""
    yield from (2**i for i in range((limit - 1).bit_length()))
    yield limit


def linear_traffic(parameters: Parameters, product: Product, weight_bits: float) -> Traffic:
    """Return the DRAM traffic of a linear, all of its ``count``.

    Args:
        parameters: with the capacities of the buffers.
        product: its shape.
        weight_bits: of a stored weight, its share of the group's scale included.

    Raises:
        RecipeError: the buffers cannot hold a single element.
    """
    m, n, k = product.m, product.n, product.k
    weights, activations = n * k * weight_bits, m * k * float(product.activation)
    outputs = m * n * parameters.output.value
    buffers = parameters.buffers
    room = [_half(b.capacity.value) for b in (buffers.weights, buffers.activations, buffers.outputs)]
    best: Traffic | None = None
    for tn, tm in itertools.product(_sizes(n), _sizes(m)):
        if tn * tm * parameters.partial_sum.value > room[2]:
            continue
        # The whole depth in one tile lets one operand stay; otherwise both pass once per tile of the other.
        whole_weights, whole_activations = tn * k * weight_bits <= room[0], tm * k * product.activation <= room[1]
        if tn * weight_bits > room[0] or tm * product.activation > room[1]:
            continue
        passes_w, passes_a = math.ceil(m / tm), math.ceil(n / tn)
        for stays in ("weights", "activations"):
            w = weights * (1 if stays == "weights" and whole_weights else passes_w)
            a = activations * (1 if stays == "activations" and whole_activations else passes_a)
            if best is None or w + a < best.weights + best.activations:
                best = Traffic(w, a, outputs)
    if best is None:
        raise RecipeError("parameters: the buffers are too small for one element of a tile")
    return Traffic(best.weights * product.count, best.activations * product.count, best.outputs * product.count)


def attention_traffic(
    parameters: Parameters,
    *,
    queries: int,
    keys: int,
    heads: int,
    key_size: int,
    value_size: int,
    activation: int,
    cache: float,
) -> Traffic:
    """Return the DRAM traffic of one key-value head whose scores never leave the chip, without writing new K and V.

    Args:
        parameters: with the capacities of the buffers.
        queries: tokens whose attention is wanted.
        keys: tokens in the cache.
        heads: query heads that share this key-value head.
        key_size, value_size: channels per head.
        activation: bits of q.
        cache: bits of a stored element of K or V.

    Raises:
        RecipeError: the buffers cannot hold one query.
    """
    rows = queries * heads
    fits = min(
        _half(parameters.buffers.activations.capacity.value) // (key_size * activation),
        _half(parameters.buffers.outputs.capacity.value) // (value_size * parameters.partial_sum.value),
    )
    if fits < 1:
        raise RecipeError("parameters: the buffers are too small for one query")
    return Traffic(
        activations=rows * key_size * float(activation),
        outputs=rows * value_size * parameters.output.value,
        cache=keys * (key_size + value_size) * cache * math.ceil(rows / fits),
    )


def buffer_energy(
    parameters: Parameters, shape: Geometry, product: Product, weight_bits: float, filled: Traffic
) -> float:
    """Return the energy of the buffers during ``product``, pJ.

    Weights are read once per tile of activations that the output buffer holds, activations once per tile of columns,
    partial sums are read and written once per tile of rows.
    """
    m, n, k = product.m, product.n, product.k
    buffers = parameters.buffers
    wide = int(shape.columns * max(shape.rate(product), 1.0))
    rows_held = max(1, int(_half(buffers.outputs.capacity.value) // (wide * parameters.partial_sum.value)))
    sums = m * n * math.ceil(k / shape.rows) * parameters.partial_sum.value * product.count
    weights = n * k * weight_bits * math.ceil(m / rows_held) * product.count
    activations = m * k * product.activation * math.ceil(n / wide) * product.count
    return (
        weights * buffers.weights.read.value
        + activations * buffers.activations.read.value
        + sums * (buffers.outputs.read.value + buffers.outputs.write.value)
        + (filled.weights + filled.cache) * buffers.weights.write.value
        + filled.activations * buffers.activations.write.value
    )
