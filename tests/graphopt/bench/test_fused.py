"""The cases of the suite "fused", and the bytes they are rated by."""

import pytest

from graphopt.bench.fused import FusedCase
from graphopt.bench.suites import SUITES
from graphopt.passes.fused.ops import FUSED


def test_every_op_is_timed_for_few_and_for_many_tokens() -> None:
    cases = set(SUITES["fused"].cases())
    assert {case.producer for case in cases} == set(FUSED)
    assert all({c.m for c in cases if c.producer == producer} >= {1, 16, 4096} for producer in FUSED)


@pytest.mark.parametrize(("producer", "tensors"), [("RMSNorm", 2), ("AddRMSNorm", 4), ("GatedSilu", 3), ("Gelu", 2)])
def test_bytes_are_those_of_inputs_and_outputs(producer: str, tensors: int) -> None:
    """An add producer writes its sum too; parameters come from caches."""
    assert FusedCase(producer, 16, 4096).moved == tensors * 2 * 16 * 4096
