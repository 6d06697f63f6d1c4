"""Cycles of a matrix product on a weight-stationary systolic array.

An array of R x C PEs holds a tile of the weights, 8 bits in each; activations stream through it, partial sums move
down. The next tile is shifted in while the present one is used (double-buffered weights, as in the TPU, ISCA'17):

    cycles = ceil(K / R) ceil(N / C') max(M p, R h) + R + C - 2

C' is C times the products that a PE finishes in a cycle; a product of wider operands takes p cycles of the PE, and its
weight is shifted in as h bytes. With few activations (M < R, decode) shifting in is what counts.
"""

__all__ = ["Geometry", "Product", "cycles", "geometry"]

import math
from dataclasses import dataclass
from typing import Literal

from graphopt.errors import RecipeError
from graphopt.estimate.parameters import Array, Parameters

#: Bits of a PE's register for weights, in all arrays (``reg [7:0] weight`` in their Verilog).
REGISTER = 8


@dataclass(frozen=True)
class Product:
    """(m, k) activations times (k, n) stationary weights, in bits per element; ``count`` times."""

    m: int
    n: int
    k: int
    weight: int
    activation: int
    count: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all."""
        return self.m * self.n * self.k * self.count


@dataclass(frozen=True)
class Geometry:
    """Rows and columns of an array, with the products of its PE per cycle by "weight x activation" bits."""

    rows: int
    columns: int
    products: dict[str, float]

    @property
    def pes(self) -> int:
        """Number of PEs."""
        return self.rows * self.columns

    def rate(self, product: Product) -> float:
        """Return the products of this kind that a PE finishes in a cycle."""
        return self.products[f"{product.weight}x{product.activation}"]


def geometry(parameters: Parameters, array: Array, equal: Literal["area", "pes"]) -> Geometry:
    """Return the size of ``array`` when all arrays have the area, or the number of PEs, of M-ANT's.

    Rows are the same for all; columns fill the area. A column of a grouped array ends in a unit that quantizes.

    Raises:
        RecipeError: not one column fits.
    """
    rows, columns = int(parameters.rows.value), int(parameters.columns.value)
    pe = parameters.pes[array.pe]
    if equal == "area":
        ours = rows * parameters.pes[parameters.arrays["mant"].pe].area.value + parameters.quantizer.area.value
        own = parameters.quantizer.area.value if array.grouped else 0.0
        columns = int(columns * ours / (rows * pe.area.value + own))
        if columns < 1:
            raise RecipeError(f"parameters: no column of {rows} PEs '{array.pe}' fits into the area of M-ANT's array")
    return Geometry(rows, columns, {name: quantity.value for name, quantity in pe.products.items()})


def cycles(shape: Geometry, product: Product) -> int:
    """Return the cycles of ``product``, all of its ``count``, while memory keeps up."""
    if 0 in (product.m, product.n, product.k):
        return 0
    rate = shape.rate(product)
    wide = int(shape.columns * max(rate, 1.0))
    steps = product.m * math.ceil(1 / min(rate, 1.0))
    shifting = shape.rows * math.ceil(product.weight / REGISTER)
    folds = math.ceil(product.k / shape.rows) * math.ceil(product.n / wide)
    return (folds * max(steps, shifting) + shape.rows + shape.columns - 2) * product.count
