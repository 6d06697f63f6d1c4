"""Suite "mixq": the linear of MixQ, one row for each scheme; float16, and some sizes in bfloat16.

Case "linear" is everything from the 16-bit input of the quantizing op to the 16-bit output, two launches; case "gemm"
is the second of them.
"""

__all__ = ["LinearCase", "Operands", "exact_linear", "linear_cases", "measure_linear"]

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import SIZES, row_error, some_rows
from graphopt.bench.peers import GEMM_PEERS, LINEAR_PEERS, peer_times
from graphopt.bench.record import Row
from graphopt.bench.timer import Timing, copies_for, median_us
from graphopt.errors import InternalError
from graphopt.numerics.packing import PACK_STEP

if TYPE_CHECKING:
    from torch import Tensor

SUITE = "mixq"
ROWS = (1, 16, 128, 512, 2048, 4096)
BFLOAT16_CASES = ((1, 8192, 8192), (16, 8192, 8192), (512, 8192, 8192), (4096, 8192, 8192), (16, 4096, 4096))  # M, N, K
SCHEMES = ("w8a8", "w4a8", "w4a4")
MOST_ROWS = {"w4a4": 512}  # above, it is w4a8 behind a launch that unpacks
#: (N, K), the most telling first, should the time not suffice for all.
ORDER = (SIZES[-1], *SIZES[:-1])
GROUP = 128  # columns that share an integer scale of 4-bit weights
CAPACITY = 128
OUTLIERS = 32  # channels that are in use; the rest of the capacity is padding
_OUTLIER_SCALE = 20.0
_CODE_MAX, _GROUP_SCALE_MAX = 7, 18  # their product is the largest int8 code that 4-bit ones stand for
#: ||y - x W^T|| / ||x W^T|| of normal data in 8 bits is 0.009, in 4 bits 0.16, for the weights as they were quantized;
#: more says that something does not fit together.
_PRODUCT_TOLERANCE = {"a8": 0.02, "a4": 0.3}
#: Rounding to T (2^-11 or 2^-8 of each element at most) plus float32 sums, as the norm of a row.
_ROW_TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class LinearCase:
    """X [M, K] times W [N, K] with C outlier slots."""

    m: int
    n: int
    k: int
    capacity: int = CAPACITY
    scheme: str = "w8a8"
    dtype: str = "float16"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the codes of W, and of their integer scales."""
        if self.scheme == "w8a8":
            return self.n * self.k
        return self.n * self.k // 2 + self.n * (self.k // GROUP)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the codes of X."""
        return self.m * self.k // (2 if self.scheme == "w4a4" else 1)

    @property
    def gemm_bytes(self) -> int:
        """Bytes that the product must move: codes, scales, outliers, bias, 16-bit output."""
        m, n, c = self.m, self.n, self.capacity
        return self.activation_bytes + self.weight_bytes + 2 * c * (m + n) + 4 * (m + n) + 2 * n + 2 * m * n

    @property
    def linear_bytes(self) -> int:
        """The same with 16-bit activations in place of their codes, scales and outliers, which need not move."""
        m, k, c = self.m, self.k, self.capacity
        return self.gemm_bytes - self.activation_bytes - 2 * c * m - 4 * m + 2 * m * k

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
    for n, k in ORDER[:3]:
        for m in ROWS:
            yield LinearCase(m, n, k)
    for m, n, k in BFLOAT16_CASES:
        yield LinearCase(m, n, k, dtype="bfloat16")
    for n, k in ORDER[3:]:
        for m in ROWS:
            yield LinearCase(m, n, k)


class Operands:
    """Activations, quantized weights, and buffers.

    Args:
        case: what is called.
        library: to call.
        copies: of weights; if not given, so many that none is found in L2.
    """

    def __init__(self, case: LinearCase, library: Library, copies: int | None = None) -> None:
        self.torch = torch = torch_with_cuda()
        torch.manual_seed(case.m + case.n + case.k)
        m, n, k, c = case.m, case.n, case.k, case.capacity
        self.scheme, self.dtype = case.scheme, getattr(torch, case.dtype)
        self.row_tolerance = _ROW_TOLERANCE[case.dtype]
        channels = torch.randperm(k, device="cuda")[:OUTLIERS].sort().values
        self.channels = channels
        self.idx = torch.full((c,), -1, dtype=torch.int32, device="cuda")
        self.idx[:OUTLIERS] = channels.int()
        self.x = torch.randn(m, k, dtype=self.dtype, device="cuda")
        self.x[:, channels] *= _OUTLIER_SCALE
        self.weights = [self._weight(n, k, c) for _ in range(copies or copies_for(case.weight_bytes))]
        x_codes = {"xq4": (m, k // 2)} if case.scheme == "w4a4" else {"xq": (m, k)}
        self.codes = {
            **{name: torch.empty(shape, dtype=torch.int8, device="cuda") for name, shape in x_codes.items()},
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, c, dtype=self.dtype, device="cuda"),
        }
        self.y = torch.empty(m, n, dtype=self.dtype, device="cuda")
        scratch = library.workspace_bytes(m, k) if case.scheme == "w4a4" else 0
        self.workspace = torch.empty(scratch, dtype=torch.int8, device="cuda")

    def _weight(self, n: int, k: int, c: int) -> dict[str, Any]:
        torch = self.torch
        w = torch.randn(n, k, dtype=self.dtype, device="cuda").mul_(k**-0.5)
        wo = torch.zeros(n, c, dtype=self.dtype, device="cuda")
        wo[:, :OUTLIERS] = w[:, self.channels]
        w[:, self.channels] = 0
        codes = _eight_bits(w) if self.scheme == "w8a8" else _four_bits(w)
        return {**codes, "wo": wo, "bias": torch.randn(n, dtype=self.dtype, device="cuda")}

    def quantize(self, library: Library) -> None:
        """Enqueue the quantizing op."""
        library.quantize("MixQQuantize", self.x, self.idx, self.codes)

    def gemm(self, library: Library, weight: dict[str, Any], **more: Any) -> None:
        """Enqueue the product; ``more``: y in place of the own one, residual."""
        operands = {**self.codes, **weight, "y": self.y, **more}
        if self.scheme == "w8a8":
            library.linear(**operands)
        elif self.scheme == "w4a8":
            library.linear_w4a8(**operands, group=GROUP)
        else:
            library.linear_w4a4(**operands, group=GROUP, workspace=self.workspace)

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
        rows = some_rows(len(self.x))
        exact = exact_linear({name: t[rows] for name, t in self.codes.items()} | weight, GROUP)
        y = self.y[rows].double()
        error = row_error(y, exact)
        full = _int8_codes(weight, GROUP).double() * weight["sw"].double()[:, None]
        full[:, self.channels] = weight["wo"][:, :OUTLIERS].double()
        product = self.x[rows].double() @ full.T + weight["bias"].double()
        loss = float((y - product).norm() / product.norm())
        if not error <= self.row_tolerance or not loss <= _PRODUCT_TOLERANCE[self.scheme[2:]]:
            raise InternalError(f"the linear is wrong: row error {error:.2e}, error of the product {loss:.3f}")


def _eight_bits(w: "Tensor") -> dict[str, Any]:
    """wq [N, K] and sw [N] of W [N, K]."""
    scale = w.abs().amax(1).float() / 127
    return {"wq": (w / scale[:, None]).round_().to(torch_with_cuda().int8), "sw": scale}


def _four_bits(w: "Tensor") -> dict[str, Any]:
    """wq4 [N, K / 2], sg [K / GROUP, N] and sw [N] of W [N, K]; K a multiple of GROUP."""
    torch = torch_with_cuda()
    n = len(w)
    groups = w.float().view(n, -1, GROUP)
    largest = groups.abs().amax(2) / _CODE_MAX
    scale = largest.amax(1) / _GROUP_SCALE_MAX
    sg = (largest / scale[:, None]).ceil_().clamp_(1, _GROUP_SCALE_MAX)
    codes = (groups / (sg * scale[:, None])[:, :, None]).round_().clamp_(-_CODE_MAX, _CODE_MAX)
    halves = codes.to(torch.int32).view(n, -1, 2, PACK_STEP // 2) & 15
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).to(torch.uint8).view(torch.int8).reshape(n, -1)
    return {"wq4": packed, "sg": sg.T.contiguous().to(torch.int8), "sw": scale}


def _int8_codes(operands: "dict[str, Tensor]", group: int) -> "Tensor":
    """wq [N, K], or the int8 codes that wq4 and sg stand for; K is then what the rows of wq4 hold."""
    if "wq" in operands:
        return operands["wq"]
    codes = _unpack(operands["wq4"])
    groups = torch_with_cuda().arange(codes.shape[1], device=codes.device) // group
    return codes * operands["sg"].T[:, groups.clamp_(max=len(operands["sg"]) - 1)]


def exact_linear(operands: "dict[str, Tensor]", group: int) -> "Tensor":
    """Return y [M, N] of a linear in float64, in which the integer sums are exact.

    Args:
        operands: as in params.h, by name; with or without a residual, with codes of 8 or of 4 bits.
        group: columns that share a scale of 4-bit weights.
    """
    others = {name: t.double() for name, t in operands.items() if name in ("sx", "xo", "sw", "wo", "bias", "residual")}
    xq = operands["xq"] if "xq" in operands else _unpack(operands["xq4"])
    codes = _int8_codes(operands, group)[:, : xq.shape[1]]
    inner = xq[:, : codes.shape[1]].double() @ codes.double().T
    y = others["sx"] * others["sw"] * inner + others["xo"] @ others["wo"].T + others["bias"]
    return y + others["residual"] if "residual" in others else y


def _unpack(packed: "Tensor") -> "Tensor":
    """graphopt.numerics.packing.unpack_int4 of rows, padding included."""
    vectors = packed.view(len(packed), -1, 1, PACK_STEP // 2)
    return torch_with_cuda().cat((vectors << 4 >> 4, vectors >> 4), 2).reshape(len(packed), -1)


def _own_times(case: LinearCase, library: Library) -> tuple[Timing, Timing, Any]:
    """Return the times of the linear and of the product alone, and x; the weights are gone then, for the peers'."""
    operands = Operands(case, library)
    operands.check(library)

    def whole(weight: dict[str, Any]) -> None:
        operands.quantize(library)
        operands.gemm(library, weight)

    linear = median_us([partial(whole, w) for w in operands.weights])
    return linear, median_us([partial(operands.gemm, library, w) for w in operands.weights]), operands.x


def measure_linear(case: LinearCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time the linear and the product alone in every scheme, and their peers."""
    own = {}
    for scheme in SCHEMES:
        if case.m > MOST_ROWS.get(scheme, case.m):
            continue
        of_scheme = replace(case, scheme=scheme)
        *own[of_scheme], x = _own_times(of_scheme, library)
    others = {"linear": LINEAR_PEERS[case.dtype], "gemm": GEMM_PEERS[case.dtype]}
    peers = {name: peer_times(of_name, x, case.n) for name, of_name in others.items()}
    for of_scheme, timings in own.items():
        for name, timing in zip(("linear", "gemm"), timings, strict=True):
            moved = of_scheme.linear_bytes if name == "linear" else of_scheme.gemm_bytes
            times, missing = peers[name]
            yield Row.of(
                timing,
                ceilings.floor_us(moved, case.int8_ops, case.fp16_ops),
                suite=SUITE,
                case=name,
                scheme=f"mixq-{of_scheme.scheme}",
                shape=(case.m, case.n, case.k, case.capacity),
                moved=moved,
                ops=case.int8_ops + case.fp16_ops,
                dtype=case.dtype,
                peers=times,
                missing=missing,
            )
