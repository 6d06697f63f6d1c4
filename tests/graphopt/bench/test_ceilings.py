"""Floors follow from the larger of two times."""

import pytest

from graphopt.bench.ceilings import Ceilings

CEILINGS = Ceilings(copy=3e12, fp16=700e12, int8=1400e12)


def test_floor_of_work_that_moves_more_than_it_computes() -> None:
    assert CEILINGS.floor_us(3_000_000) == pytest.approx(1.0)
    assert CEILINGS.floor_us(3_000_000, int8_ops=1_000_000) == pytest.approx(1.0)


def test_floor_of_work_that_computes_more_adds_both_units() -> None:
    assert CEILINGS.floor_us(1, int8_ops=1_400_000_000, fp16_ops=350_000_000) == pytest.approx(1.5)


def test_fields_are_in_the_units_of_their_names() -> None:
    assert CEILINGS.fields() == {"copy_tb_s": 3.0, "fp16_tflop_s": 700, "int8_top_s": 1400}
