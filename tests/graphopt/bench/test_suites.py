"""The cases of the suites, and the bytes and operations they are rated by."""

import pytest

from graphopt.bench.mixq_linear import LinearCase, linear_cases
from graphopt.bench.mixq_quantize import QuantizeCase, quantize_cases
from graphopt.bench.suites import SUITES, suite
from graphopt.errors import BenchError


def test_unknown_suite() -> None:
    with pytest.raises(BenchError, match="no suite 'mixqq'; did you mean 'mixq'"):
        suite("mixqq")
    assert suite("mixq") is SUITES["mixq"]


def test_the_linear_is_measured_where_the_targets_are() -> None:
    cases = set(linear_cases())
    for n, k in ((8192, 8192), (28672, 8192), (8192, 28672)):
        for m in (1, 16, 512, 2048, 4096):
            assert LinearCase(m, n, k, 128) in cases
    assert LinearCase(16, 8192, 8192, 128, dtype="bfloat16") in cases


def test_bytes_and_operations_of_a_linear() -> None:
    case = LinearCase(m=2, n=8, k=32, capacity=16)
    codes = 2 * 32 + 8 * 32
    scales, outliers, bias, output = 4 * (2 + 8), 2 * 16 * (2 + 8), 2 * 8, 2 * 2 * 8
    assert case.gemm_bytes == codes + scales + outliers + bias + output
    # From float16 activations: their codes, scales and outliers need not move, they must.
    assert case.linear_bytes == 8 * 32 + 4 * 8 + 2 * 16 * 8 + bias + output + 2 * 2 * 32
    assert (case.int8_ops, case.fp16_ops) == (2 * 2 * 8 * 32, 2 * 2 * 8 * 16)


def test_bytes_of_4_bit_weights() -> None:
    eight, four, all_four = (LinearCase(2, 8, 256, 16, scheme) for scheme in ("w8a8", "w4a8", "w4a4"))
    assert four.gemm_bytes - all_four.gemm_bytes == 2 * 256 // 2
    assert four.linear_bytes == all_four.linear_bytes
    assert eight.gemm_bytes - four.gemm_bytes == 8 * 256 - (8 * 256 // 2 + 8 * 2)  # two groups of 128
    assert (eight.int8_ops, eight.fp16_ops) == (four.int8_ops, four.fp16_ops)


@pytest.mark.parametrize(
    ("producer", "per_element"),
    [
        ("MixQQuantize", 3),
        ("MixQRMSNorm", 3),
        ("MixQGelu", 3),
        ("MixQGatedSilu", 5),
        ("MixQSwiGLU", 5),
        ("MixQAddLayerNorm", 7),
    ],
)
def test_bytes_of_a_quantizing_op(producer: str, per_element: int) -> None:
    assert QuantizeCase(producer, 10, 64, 16).bytes == 10 * (64 * per_element + 4 + 2 * 16)


def test_every_quantizing_op_is_measured_at_few_and_many_rows() -> None:
    cases = list(quantize_cases())
    assert len({case.producer for case in cases}) == 13
    assert {case.producer for case in cases if case.dtype == "bfloat16"} == {case.producer for case in cases}
    assert {case.m for case in cases} == {16, 4096}
