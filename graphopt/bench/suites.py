"""The suites by name, and a run of one."""

__all__ = ["SUITES", "Suite", "suite"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from graphopt.bench.capi import Library
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.fused import fused_cases, measure_fused
from graphopt.bench.mant_linear import mant_cases, measure_mant
from graphopt.bench.mixq_linear import linear_cases, measure_linear
from graphopt.bench.mixq_quantize import measure_quantize, quantize_cases
from graphopt.bench.mixq_residual import measure_residual, residual_cases
from graphopt.bench.record import Row
from graphopt.bench.vq_hadamard import hadamard_cases, measure_hadamard
from graphopt.bench.vq_linear import measure_vq, vq_cases
from graphopt.errors import BenchError, nearest


@dataclass(frozen=True)
class Suite:
    """Cases, and how one is measured."""

    cases: Callable[[], Iterator[Any]]
    measure: Callable[[Any, Library, Ceilings], Iterator[Row]]

    def run(self, library: Library, ceilings: Ceilings) -> Iterator[Row]:
        """Measure every case."""
        for case in self.cases():
            yield from self.measure(case, library, ceilings)


SUITES = {
    "fused": Suite(fused_cases, measure_fused),
    "mant": Suite(mant_cases, measure_mant),
    "mixq": Suite(linear_cases, measure_linear),
    "mixq_quantize": Suite(quantize_cases, measure_quantize),
    "mixq_residual": Suite(residual_cases, measure_residual),
    "vq": Suite(vq_cases, measure_vq),
    "vq_hadamard": Suite(hadamard_cases, measure_hadamard),
}


def suite(name: str) -> Suite:
    """Return the suite ``name``.

    Raises:
        BenchError: there is none of that name.
    """
    if name not in SUITES:
        raise BenchError(f"there is no suite '{name}'{nearest(name, SUITES)}")
    return SUITES[name]
