"""The cases of the suite "vq_hadamard", and the bytes they are rated by."""

import pytest

from graphopt.bench.suites import SUITES
from graphopt.bench.vq_hadamard import HadamardCase
from graphopt.passes.vq.hadamard_ops import FUSED


def test_every_op_is_timed_for_few_and_for_many_tokens() -> None:
    cases = set(SUITES["vq_hadamard"].cases())
    assert {case.producer for case in cases} == {"Plain", *FUSED}
    assert all({c.m for c in cases if c.producer == producer} >= {1, 16, 4096} for producer in FUSED)


@pytest.mark.parametrize(
    ("producer", "tensors"), [("Plain", 2), ("RMSNorm", 2), ("AddRMSNorm", 4), ("GatedSilu", 3), ("Gelu", 2)]
)
def test_bytes_are_those_of_inputs_and_outputs(producer: str, tensors: int) -> None:
    """An add producer writes its sum too; signs and parameters come from caches."""
    assert HadamardCase(producer, 16, 4096).moved == tensors * 2 * 16 * 4096
