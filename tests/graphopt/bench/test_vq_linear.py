"""The cases of the suite "vq", and the bytes they are rated by."""

from graphopt.bench.suites import SUITES
from graphopt.bench.vq_linear import FORMATS, VqCase, vq_cases
from graphopt.passes.vq.numerics import row_bytes


def test_the_linears_are_measured_where_the_targets_are() -> None:
    cases = set(SUITES["vq"].cases())
    assert cases == set(vq_cases())
    for n, k in ((8192, 8192), (28672, 8192), (8192, 28672)):
        for m in (1, 16, 512, 2048):
            assert VqCase(m, n, k) in cases


def test_rows_of_codes_are_those_of_the_op() -> None:
    for fmt in FORMATS.values():
        for k in (8, 72, 520, 8192):
            assert fmt.row_bytes(k) == row_bytes(-(-k // fmt.vector) * fmt.residuals, fmt.bits)


def test_bytes_of_a_linear() -> None:
    m, n, k = 2, 512, 1024
    scale, bias, activations = 4 * n, 2 * n, 2 * m * (k + n)
    rest = scale + bias + activations
    assert VqCase(m, n, k, "vq-quip4").moved == n * k // 2 + rest
    assert VqCase(m, n, k, "vq-aqlm3").moved == n * k * 3 // 8 + 2 * 4096 * 16 + rest
    assert VqCase(m, n, k, "vq-aqlm2").moved == n * k // 4 + 2 * 256 * 16 + rest
    assert VqCase(m, n, k, "vq-gptvq2").moved == n * k // 4 + 2 * 4 * 256 * 8 + rest
