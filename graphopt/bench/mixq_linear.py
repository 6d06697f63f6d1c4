"""Suite "mixq": the linear of MixQ, 8-bit weights and activations, float16 outliers.

Case "linear" is everything from the float16 input of the quantizing op to the float16 output, two launches; case "gemm"
is the second of them.
"""

__all__ = ["LinearCase", "linear_cases", "measure_linear"]

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.peers import GEMM_PEERS, LINEAR_PEERS, peer_times
from graphopt.bench.record import Row
from graphopt.bench.timer import Timing, copies_for, median_us
from graphopt.errors import InternalError

SUITE = "mixq"
SIZES = ((4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672))  # N, K
ROWS = (1, 16, 128, 512, 2048, 4096)
CAPACITY = 128
OUTLIERS = 32  # channels that are in use; the rest of the capacity is padding
_OUTLIER_SCALE = 20.0
#: Rows of the output that are compared with float64: all of them would take longer than what is measured.
_CHECKED_ROWS = 64
#: ||y - x W^T|| / ||x W^T|| of normal data in 8 bits is 0.009; more says that something does not fit together.
_PRODUCT_TOLERANCE = 0.02
#: Rounding to float16 (2^-11 of each element at most) plus float32 sums, as the norm of a row.
_ROW_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LinearCase:
    """X [M, K] times W [N, K] with C outlier slots."""

    m: int
    n: int
    k: int
    capacity: int = CAPACITY

    @property
    def gemm_bytes(self) -> int:
        """Bytes that the product must move: codes, scales, outliers, bias, float16 output."""
        m, n, k, c = self.m, self.n, self.k, self.capacity
        return m * k + n * k + 2 * c * (m + n) + 4 * (m + n) + 2 * n + 2 * m * n

    @property
    def linear_bytes(self) -> int:
        """The same with float16 activations in place of their codes, scales and outliers, which need not move."""
        m, k, c = self.m, self.k, self.capacity
        return self.gemm_bytes - m * k - 2 * c * m - 4 * m + 2 * m * k

    @property
    def int8_ops(self) -> int:
        """Operations of the product of codes."""
        return 2 * self.m * self.n * self.k

    @property
    def fp16_ops(self) -> int:
        """Operations of the outlier product."""
        return 2 * self.m * self.n * self.capacity


def linear_cases() -> Iterator[LinearCase]:
    """Every size of the suite."""
    for n, k in SIZES:
        for m in ROWS:
            yield LinearCase(m, n, k)


class _Operands:
    """Activations, quantized weights in several copies, and buffers."""

    def __init__(self, case: LinearCase) -> None:
        self.torch = torch = torch_with_cuda()
        torch.manual_seed(case.m + case.n + case.k)
        m, n, k, c = case.m, case.n, case.k, case.capacity
        channels = torch.randperm(k, device="cuda")[:OUTLIERS].sort().values
        self.channels = channels
        self.idx = torch.full((c,), -1, dtype=torch.int32, device="cuda")
        self.idx[:OUTLIERS] = channels.int()
        self.x = torch.randn(m, k, dtype=torch.float16, device="cuda")
        self.x[:, channels] *= _OUTLIER_SCALE
        self.weights = [self._weight(n, k, c) for _ in range(copies_for(n * k))]
        self.codes = {
            "xq": torch.empty(m, k, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, c, dtype=torch.float16, device="cuda"),
        }
        self.y = torch.empty(m, n, dtype=torch.float16, device="cuda")

    def _weight(self, n: int, k: int, c: int) -> dict[str, Any]:
        torch = self.torch
        w = torch.randn(n, k, dtype=torch.float16, device="cuda").mul_(k**-0.5)
        wo = torch.zeros(n, c, dtype=torch.float16, device="cuda")
        wo[:, :OUTLIERS] = w[:, self.channels]
        w[:, self.channels] = 0
        scale = w.abs().amax(1).float() / 127
        wq = (w / scale[:, None]).round_().to(torch.int8)
        return {"wq": wq, "sw": scale, "wo": wo, "bias": torch.randn(n, dtype=torch.float16, device="cuda")}

    def quantize(self, library: Library) -> None:
        library.quantize("MixQQuantize", self.x, self.idx, self.codes)

    def gemm(self, library: Library, weight: dict[str, Any]) -> None:
        library.linear(**self.codes, **weight, y=self.y)

    def check(self, library: Library) -> None:
        """Run once on poisoned buffers and compare with float64.

        Raises:
            InternalError: the kernels are wrong.
        """
        torch = self.torch
        for buffer in (*self.codes.values(), self.y):
            buffer.view(torch.uint8).fill_(0xA5)
        self.quantize(library)
        weight = self.weights[0]
        self.gemm(library, weight)
        rows = torch.linspace(0, len(self.x) - 1, min(len(self.x), _CHECKED_ROWS), device="cuda").round().long()
        codes = {name: t[rows].double() for name, t in self.codes.items()}
        w = {name: t.double() for name, t in weight.items()}
        exact = codes["sx"] * w["sw"] * (codes["xq"] @ w["wq"].T) + codes["xo"] @ w["wo"].T + w["bias"]
        y = self.y[rows].double()
        error = float(((y - exact).norm(dim=1) / exact.norm(dim=1)).max())
        full = w["wq"] * w["sw"][:, None]
        full[:, self.channels] = w["wo"][:, :OUTLIERS]
        product = self.x[rows].double() @ full.T + w["bias"]
        loss = float((y - product).norm() / product.norm())
        if not error <= _ROW_TOLERANCE or not loss <= _PRODUCT_TOLERANCE:
            raise InternalError(f"the linear is wrong: row error {error:.2e}, error of the product {loss:.3f}")


def _own_times(case: LinearCase, library: Library) -> tuple[Timing, Timing, Any]:
    """Return the times of the linear and of the product alone, and x; the weights are gone then, for the peers'."""
    operands = _Operands(case)
    operands.check(library)

    def whole(weight: dict[str, Any]) -> None:
        operands.quantize(library)
        operands.gemm(library, weight)

    linear = median_us([partial(whole, w) for w in operands.weights])
    return linear, median_us([partial(operands.gemm, library, w) for w in operands.weights]), operands.x


def measure_linear(case: LinearCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time the linear, the product alone and their peers."""
    linear, gemm, x = _own_times(case, library)
    shape = (case.m, case.n, case.k, case.capacity)
    times, missing = peer_times(LINEAR_PEERS, x, case.n)
    ops = case.int8_ops + case.fp16_ops
    floor = ceilings.floor_us(case.linear_bytes, case.int8_ops, case.fp16_ops)
    yield Row.of(
        linear, floor, suite=SUITE, case="linear", shape=shape, moved=case.linear_bytes, ops=ops, peers=times,
        missing=missing,
    )  # fmt: skip
    gemm_times, missing = peer_times(GEMM_PEERS, x, case.n)
    floor = ceilings.floor_us(case.gemm_bytes, case.int8_ops, case.fp16_ops)
    yield Row.of(
        gemm, floor, suite=SUITE, case="gemm", shape=shape, moved=case.gemm_bytes, ops=ops, peers=gemm_times,
        missing=missing,
    )  # fmt: skip
