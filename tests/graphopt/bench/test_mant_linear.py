"""The cases of the suite "mant", and the bytes they are rated by."""

from graphopt.bench.ceilings import Ceilings
from graphopt.bench.mant_linear import MantCase, mant_cases
from graphopt.bench.suites import SUITES


def test_the_linears_are_measured_where_the_targets_are() -> None:
    cases = set(SUITES["mant"].cases())
    assert cases == set(mant_cases())
    for n, k in ((8192, 8192), (28672, 8192), (8192, 28672)):
        for m in (1, 16, 2048, 4096):
            assert MantCase(m, n, k) in cases
    assert MantCase(16, 8192, 8192, dtype="bfloat16") in cases


def test_bytes_of_a_linear() -> None:
    m, n, k = 2, 64, 128
    codes, types, scale, bias, y = n * k // 2, 2 * n // 2, 2 * n * 2, n * 2, m * n * 2
    weight = codes + types + scale
    assert MantCase(m, n, k).weight_bytes == weight
    assert MantCase(m, n, k).moved("linear") == m * k * 2 + weight + bias + y
    # int8 activations and their scales, instead of 16 bits.
    assert MantCase(m, n, k, "mant-w4a8").moved("gemm") == m * (k + 4) + weight + bias + y
    assert MantCase(m, n, k, "mant-w4a8").moved("linear") == MantCase(m, n, k).moved("linear")


def test_one_pass_of_int8_may_take_half_the_time() -> None:
    ceilings = Ceilings(copy=1e30, fp16=1e12, int8=2e12)
    exact, one_pass = (MantCase(512, 512, 512, s).floor_us(ceilings, "gemm") for s in ("mant-w4a8", "mant-int8"))
    assert exact == 2 * one_pass > 0
