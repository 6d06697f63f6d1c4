"""Suite "mant": the linears of M-ANT, groups of 64, one row for each scheme; float16, and one size in bfloat16.

Case "linear" is everything from the float16 input to the float16 output: two launches where activations become int8;
case "gemm" is the second of them.
"""

__all__ = ["MantCase", "mant_cases", "measure_mant"]

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.capi_mant import MantLibrary
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import SIZES, row_error, some_rows
from graphopt.bench.peers import LINEAR_PEERS, WEIGHT_ONLY_PEERS, peer_times
from graphopt.bench.record import Row
from graphopt.bench.timer import Timing, copies_for, median_us
from graphopt.errors import InternalError
from graphopt.numerics.packing import PACK_STEP

if TYPE_CHECKING:
    from torch import Tensor

SUITE = "mant"
ROWS = (1, 16, 64, 512, 2048, 4096)
#: Schemes of result files and their ops. NF4 is a table of MANTLinear whose negative codes do not mirror the positive.
OPS = {"mant-w4a16": "MANTLinear", "nf4": "MANTLinear", "mant-w4a8": "MANTLinearW4A8", "mant-int8": "MANTLinearInt8"}
GROUP = 64
_CAPACITY = 16  # the least that a quantizing op takes; all of it is padding
_STEPS = (0, 5, 10, 17, *range(20, 130, 10))  # a of types 0 to 14; type 15 is INT4
_CODES = 16
#: Above, MANTLinearInt8 rounds weights to 127ths of the largest of their row (trt_plugins/mant/linear/policy.h).
_MOST_HALF_TOKENS = 128
_CHUNK = 2048  # rows of W that are decoded at once for the check
#: Rounding to T (2^-11 or 2^-8 of each element at most) plus float32 sums, as the norm of a row.
_ROW_TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}
_BFLOAT16_SIZE = (8192, 8192)


@dataclass(frozen=True)
class MantCase:
    """X [M, K] times W [N, K]."""

    m: int
    n: int
    k: int
    scheme: str = "mant-w4a16"
    dtype: str = "float16"

    @property
    def quantizes(self) -> bool:
        """Whether activations become int8."""
        return OPS[self.scheme] != "MANTLinear"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the codes of W, their types and scales."""
        return self.n * self.k // 2 + self.n * (self.k // GROUP) * 5 // 2

    def moved(self, case: str) -> int:
        """Bytes that ``case`` must move."""
        codes = self.quantizes and case == "gemm"
        x = self.m * (self.k + 4) if codes else 2 * self.m * self.k
        return x + self.weight_bytes + 2 * self.n + 2 * self.m * self.n

    @property
    def ops(self) -> int:
        """Operations of the product."""
        return 2 * self.m * self.n * self.k

    def floor_us(self, ceilings: Ceilings, case: str) -> float:
        """Least time. Two products of int8 take as long as one of 16 bits."""
        int8, fp16 = (self.ops, 0) if self.scheme == "mant-int8" else (0, self.ops)
        return ceilings.floor_us(self.moved(case), int8, fp16)


def mant_cases() -> Iterator[MantCase]:
    """Every size of the suite."""
    for n, k in SIZES:
        for m in ROWS:
            yield MantCase(m, n, k)
    for m in ROWS:
        yield MantCase(m, *_BFLOAT16_SIZE, dtype="bfloat16")


class _Operands:
    """Activations, random weights in several copies, and buffers."""

    def __init__(self, case: MantCase) -> None:
        self.torch = torch = torch_with_cuda()
        torch.manual_seed(case.m + case.n + case.k)
        self.op, self.scheme, self.dtype = OPS[case.scheme], case.scheme, getattr(torch, case.dtype)
        self.row_tolerance = _ROW_TOLERANCE[case.dtype]
        m, n, k = case.m, case.n, case.k
        self.x = torch.randn(m, k, dtype=self.dtype, device="cuda")
        self.table = self._table()
        self.bias = torch.randn(n, dtype=self.dtype, device="cuda")
        self.weights = [self._weight(n, k) for _ in range(copies_for(case.weight_bytes))]
        self.idx = torch.full((_CAPACITY,), -1, dtype=torch.int32, device="cuda")
        self.quantized = {
            "xq": torch.empty(m, k, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, _CAPACITY, dtype=self.dtype, device="cuda"),
        }
        self.y = torch.empty(m, n, dtype=self.dtype, device="cuda")

    def _table(self) -> Any:
        """Values (16, 16) by type and code as the op reads them; None where it knows them."""
        torch = self.torch
        index = torch.arange(_CODES // 2, dtype=torch.float64)
        powers = [2.0 ** (7 * a + 127).bit_length() for a in _STEPS]
        halves = [*((a * index + 2**index) / p for a, p in zip(_STEPS, powers, strict=True)), index / 8]
        values = torch.stack([torch.cat((half, -half)) for half in halves]).cuda()
        self.values = values
        if self.op == "MANTLinearW4A8":
            return None
        if self.op == "MANTLinearInt8":
            table = (values / values.amax(1, keepdim=True) * 127).round().to(torch.int8)
            self.values = table.double() / 128
            return table
        if self.scheme == "nf4":  # only its shape counts: another magnitude for each code
            values = values * torch.linspace(0.5, 1, _CODES, dtype=torch.float64, device="cuda")
        table = values.half()
        self.values = table.double()
        return table

    def _weight(self, n: int, k: int) -> dict[str, Any]:
        torch = self.torch
        groups = k // GROUP
        packed_types = -(-n // PACK_STEP) * PACK_STEP // 2
        return {
            "codes": torch.randint(-128, 128, (n, k // 2), dtype=torch.int8, device="cuda"),
            "types": torch.randint(-128, 128, (groups, packed_types), dtype=torch.int8, device="cuda"),
            "scale": (torch.rand(groups, n, device="cuda") * k**-0.5 + 1e-3).half(),
            "bias": self.bias,
            **({} if self.table is None else {"table": self.table}),
        }

    def quantize(self, library: Library) -> None:
        library.quantize("MixQQuantize", self.x, self.idx, self.quantized)

    def gemm(self, library: MantLibrary, weight: dict[str, Any]) -> None:
        x = {"x": self.x} if self.op == "MANTLinear" else {name: self.quantized[name] for name in ("xq", "sx")}
        library.mant_linear(self.op, x | weight, self.y, group=GROUP)

    def check(self, library: MantLibrary) -> None:
        """Run once on a poisoned buffer and compare with float64.

        Raises:
            InternalError: the kernel is wrong.
        """
        torch = self.torch
        self.y.view(torch.uint8).fill_(0xA5)
        if self.op != "MANTLinear":
            self.quantize(library)
        self.gemm(library, self.weights[0])
        rows = some_rows(len(self.x))
        x = self.x[rows].double()
        if self.op != "MANTLinear":
            x = self.quantized["xq"][rows].double() * self.quantized["sx"][rows].double()
        weights = self._decoded(self.weights[0])
        if self.op == "MANTLinearInt8" and len(self.x) > _MOST_HALF_TOKENS:
            weights = map(_row_bytes, weights)
        exact = torch.cat([x @ w.T for w in weights], 1) + self.bias.double()
        error = row_error(self.y[rows].double(), exact)
        if not error <= self.row_tolerance:
            raise InternalError(f"{self.op} is wrong: row error {error:.2e}")

    def _decoded(self, weight: dict[str, Any]) -> Iterator["Tensor"]:
        """W in float64, _CHUNK rows at a time."""
        n = weight["scale"].shape[1]
        types = _nibbles(weight["types"])[:, :n].T
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            index = types[rows].long().repeat_interleave(GROUP, 1) * _CODES + _nibbles(weight["codes"][rows])
            yield self.values.flatten()[index] * weight["scale"][:, rows].T.double().repeat_interleave(GROUP, 1)


def _row_bytes(w: "Tensor") -> "Tensor":
    # A row's largest weight is 127 of the type's and the scale's largest, as random groups have all codes.
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).round() * step


def _nibbles(packed: "Tensor") -> "Tensor":
    """Codes 0 to 15 of rows packed as in graphopt.numerics.packing."""
    torch = torch_with_cuda()
    vectors = packed.view(torch.uint8).view(len(packed), -1, 1, PACK_STEP // 2)
    return torch.cat((vectors & 15, vectors >> 4), 2).reshape(len(packed), -1)


def _own_times(case: MantCase, library: MantLibrary) -> tuple[dict[str, Timing], Any]:
    """Return the times by case, and x; the weights are gone then, for the peers'."""
    operands = _Operands(case)
    operands.check(library)

    def whole(weight: dict[str, Any]) -> None:
        operands.quantize(library)
        operands.gemm(library, weight)

    times = {"gemm": median_us([partial(operands.gemm, library, w) for w in operands.weights])}
    if case.quantizes:
        times["linear"] = median_us([partial(whole, w) for w in operands.weights])
    else:
        times["linear"] = times.pop("gemm")
    return times, operands.x


def measure_mant(case: MantCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time every scheme and the peers."""
    own = {}
    mant = MantLibrary(library.path)
    for scheme in OPS:
        of_scheme = replace(case, scheme=scheme)
        own[of_scheme], x = _own_times(of_scheme, mant)
    others = WEIGHT_ONLY_PEERS if case.dtype == "float16" else LINEAR_PEERS[case.dtype]
    peers, missing = peer_times(others, x, case.n)
    for of_scheme, timings in own.items():
        for name, timing in timings.items():
            yield Row.of(
                timing,
                of_scheme.floor_us(ceilings, name),
                suite=SUITE,
                case=name,
                scheme=of_scheme.scheme,
                shape=(case.m, case.n, case.k, 0),
                moved=of_scheme.moved(name),
                ops=case.ops,
                dtype=case.dtype,
                peers=peers,
                missing=missing,
            )
