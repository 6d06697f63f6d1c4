"""Cycles against a simulation that moves one wave at a time, and sizes of arrays against their areas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import RecipeError
from graphopt.estimate.array import Geometry, Product, cycles, geometry
from graphopt.estimate.parameters import Parameters

PARAMETERS = Parameters.load()
SMALL = Geometry(4, 3, {"8x8": 1.0, "4x8": 2.0, "16x16": 0.25})
KINDS = {(8, 8): 1.0, (4, 8): 2.0, (16, 16): 0.25}
products = st.builds(
    lambda m, n, k, kind, count: Product(m, n, k, *kind, count),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 3),
)


def simulated(shape: Geometry, product: Product) -> int:
    """Walk over the tiles of the weights: the next is shifted in while activations stream through the present one."""
    rate = KINDS[product.weight, product.activation]
    per_pe, per_product = max(1, int(rate)), math.ceil(1 / min(1.0, rate))
    clock = 0
    for _ in range(0, product.n, shape.columns * per_pe):
        for _ in range(0, product.k, shape.rows):
            streaming = sum(per_product for _ in range(product.m))
            shifting = sum(max(1, product.weight // 8) for _ in range(shape.rows))
            clock += max(streaming, shifting)
    # The last activation enters row 0; its sum leaves the last row of the last column.
    return (clock + (shape.rows - 1) + (shape.columns - 1)) * product.count


@given(products)
def test_cycles_are_those_of_the_simulation(product: Product) -> None:
    assert cycles(SMALL, product) == simulated(SMALL, product)


@given(products)
def test_no_pe_does_more_than_it_can(product: Product) -> None:
    assert cycles(SMALL, product) * SMALL.pes * SMALL.rate(product) >= product.macs


def test_many_activations_use_the_array_fully() -> None:
    product = Product(10**6, 6 * 3, 4 * 4, 4, 8)
    assert product.macs / (cycles(SMALL, product) * SMALL.pes * 2) == pytest.approx(1, rel=1e-4)


def test_nothing_costs_nothing() -> None:
    assert cycles(SMALL, Product(0, 8, 8, 8, 8)) == 0


def test_one_activation_waits_for_weights() -> None:
    """A wide weight is shifted in as bytes: twice the time of an 8-bit one."""
    one, wide = (cycles(SMALL, Product(1, 3, 4 * 100, bits, bits)) for bits in (8, 16))
    assert (one, wide) == (100 * 4 + 5, 100 * 8 + 5)


@pytest.mark.parametrize("name", sorted(PARAMETERS.arrays))
def test_equal_area_is_filled_to_the_column(name: str) -> None:
    def area(array: str, columns: int) -> float:
        own = PARAMETERS.quantizer.area.value * PARAMETERS.arrays[array].grouped
        return columns * (16 * PARAMETERS.pes[PARAMETERS.arrays[array].pe].area.value + own)

    shape = geometry(PARAMETERS, PARAMETERS.arrays[name], "area")
    budget = area("mant", 16)
    assert area(name, shape.columns) <= budget < area(name, shape.columns + 1)
    assert shape.rows == 16


def test_equal_numbers_of_pes() -> None:
    assert {geometry(PARAMETERS, a, "pes").pes for a in PARAMETERS.arrays.values()} == {256}


def test_a_pe_larger_than_the_array_is_refused() -> None:
    pes = dict(PARAMETERS.pes)
    huge = pes["int8"].area.model_copy(update={"value": 1e9})
    pes["int8"] = pes["int8"].model_copy(update={"area": huge})
    with pytest.raises(RecipeError, match="no column of 16 PEs 'int8' fits"):
        geometry(PARAMETERS.model_copy(update={"pes": pes}), PARAMETERS.arrays["int8"], "area")
