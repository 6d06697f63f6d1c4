"""Suite "mixq_residual": a linear that adds the residual, then the norm, beside a linear and the norm that adds it.

Both write the sum, which the next residual is added to. Case "residual+norm" is what the linear's epilogue does; its
peer "mixq_add_rms_norm" is the default.
"""

__all__ = ["measure_residual", "residual_cases"]

from collections.abc import Iterator
from functools import partial
from typing import Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import row_error
from graphopt.bench.mixq_linear import LinearCase, Operands
from graphopt.bench.producer import EPSILON
from graphopt.bench.record import Row
from graphopt.bench.timer import median_us
from graphopt.errors import InternalError

SUITE = "mixq_residual"
SIZES = ((4096, 11008), (8192, 8192))  # N, K
ROWS = (1, 16, 512, 4096)
#: Two roundings to float16 against one.
_TOLERANCE = 2e-3


def residual_cases() -> Iterator[LinearCase]:
    """Every size of the suite."""
    for scheme in ("w8a8", "w4a8"):
        for n, k in SIZES:
            for m in ROWS:
                yield LinearCase(m, n, k, scheme=scheme)


class _Behind:
    """What follows a linear: its residual [M, N], the sum, and what the norm makes of it."""

    def __init__(self, case: LinearCase) -> None:
        torch = torch_with_cuda()
        m, n, c = case.m, case.n, case.capacity
        self.residual = torch.randn(m, n, dtype=torch.float16, device="cuda")
        self.sum = torch.empty_like(self.residual)
        self.gamma = torch.rand(n, dtype=torch.float16, device="cuda")
        self.idx = torch.randperm(n, device="cuda")[:c].sort().values.int()
        self.outputs = {
            "xq": torch.empty(m, n, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, c, dtype=torch.float16, device="cuda"),
        }

    def in_norm(self, library: Library, operands: Operands, weight: dict[str, Any]) -> None:
        operands.gemm(library, weight)
        outputs = {**self.outputs, "sum": self.sum}
        library.quantize(
            "MixQAddRMSNorm", operands.y, self.idx, outputs, other=self.residual, gamma=self.gamma, epsilon=EPSILON
        )

    def in_linear(self, library: Library, operands: Operands, weight: dict[str, Any]) -> None:
        operands.gemm(library, weight, y=self.sum, residual=self.residual)
        library.quantize("MixQRMSNorm", self.sum, self.idx, self.outputs, gamma=self.gamma, epsilon=EPSILON)


def measure_residual(case: LinearCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check that both sums are the same but for a rounding, then time both.

    Raises:
        InternalError: they are not.
    """
    operands, behind = Operands(case, library), _Behind(case)
    operands.quantize(library)
    behind.in_norm(library, operands, operands.weights[0])
    want = behind.sum.double()
    behind.in_linear(library, operands, operands.weights[0])
    error = row_error(behind.sum.double(), want)
    if not error <= _TOLERANCE:
        raise InternalError(f"the linear adds its residual wrongly: row error {error:.2e}")
    norm = median_us([partial(behind.in_norm, library, operands, w) for w in operands.weights])
    timing = median_us([partial(behind.in_linear, library, operands, w) for w in operands.weights])
    moved = case.gemm_bytes + 2 * case.m * case.n + case.m * (3 * case.n + 2 * case.capacity + 4)
    yield Row.of(
        timing,
        ceilings.floor_us(case.gemm_bytes, case.int8_ops, case.fp16_ops) + ceilings.floor_us(moved - case.gemm_bytes),
        suite=SUITE,
        case="residual+norm",
        scheme=f"mixq-{case.scheme}",
        shape=(case.m, case.n, case.k, case.capacity),
        moved=moved,
        ops=case.int8_ops + case.fp16_ops,
        peers={"mixq_add_rms_norm": norm.us},
    )
