"""Suite "vq": linears with vector-quantized weights, float16, one row for each preset.

Case "linear" is the product from the float16 input to the float16 output. `vq-quip4` reads an input that has been
transformed, which all linears of an input share: suite "vq_hadamard".
"""

__all__ = ["FORMATS", "VqCase", "measure_vq", "vq_cases"]

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.capi_vq import VqFormat, VqLibrary
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import SIZES, row_error, some_rows
from graphopt.bench.peers import WEIGHT_ONLY_PEERS, peer_times
from graphopt.bench.record import Row
from graphopt.bench.timer import Timing, copies_for, median_us
from graphopt.errors import InternalError

if TYPE_CHECKING:
    from torch import Tensor

SUITE = "vq"
ROWS = (1, 4, 16, 32, 64, 128, 512, 2048)
FORMATS = {
    "vq-quip4": VqFormat(8, 16, 2, lattice=True),
    "vq-aqlm3": VqFormat(8, 12, 2),
    "vq-aqlm2": VqFormat(8, 8, 2),
    "vq-gptvq2": VqFormat(4, 8, 1, tile=256),
}
_RATIOS = (1.0, 0.26)
#: Elements of decoded weights are rounded to float16 (2^-11 of each at most), as y is, as the norm of a row.
_ROW_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VqCase:
    """X [M, K] times W [N, K]."""

    m: int
    n: int
    k: int
    scheme: str = "vq-aqlm2"

    @property
    def format(self) -> VqFormat:
        """Of the weight."""
        return FORMATS[self.scheme]

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes of W."""
        return self.n * self.format.row_bytes(self.k)

    @property
    def moved(self) -> int:
        """Bytes that must move: codes, codebooks, scales, bias, activations in and out."""
        books = 0
        if not self.format.lattice:
            rows, columns, r, entries, v = self.format.codebooks_shape(self.n, self.k)
            books = 2 * rows * columns * r * entries * v
        return self.codes_bytes + books + 6 * self.n + 2 * self.m * (self.k + self.n)

    @property
    def ops(self) -> int:
        """Operations of the product."""
        return 2 * self.m * self.n * self.k


def vq_cases() -> Iterator[VqCase]:
    """Every size of the suite."""
    for n, k in SIZES:
        for m in ROWS:
            yield VqCase(m, n, k)


class _Operands:
    """Activations, random codes and codebooks in several copies, and the output."""

    def __init__(self, case: VqCase, library: VqLibrary) -> None:
        torch = torch_with_cuda()
        torch.manual_seed(case.m + case.n + case.k)
        self.case, self.library = case, library
        self.x = torch.randn(case.m, case.k, dtype=torch.float16, device="cuda")
        self.x[:, torch.randperm(case.k, device="cuda")[:32]] *= 20.0
        self.weights = [self._weight() for _ in range(copies_for(case.codes_bytes))]
        self.y = torch.empty(case.m, case.n, dtype=torch.float16, device="cuda")
        self.workspace = library.workspace(case.format, case.m, case.n, case.k)

    def _weight(self) -> dict[str, "Tensor"]:
        torch, case, fmt = torch_with_cuda(), self.case, self.case.format
        rows = fmt.row_bytes(case.k)
        if fmt.lattice:
            books = torch.tensor(_RATIOS, device="cuda")
        else:
            books = torch.randn(fmt.codebooks_shape(case.n, case.k), device="cuda").half()
        return {
            "codes": torch.randint(-128, 128, (case.n, rows), dtype=torch.int8, device="cuda"),
            "books": books,
            "scale": torch.rand(case.n, device="cuda") * 0.1,
            "bias": torch.randn(case.n, dtype=torch.float16, device="cuda"),
        }

    def multiply(self, weight: dict[str, "Tensor"]) -> None:
        self.library.vq_linear(self.case.format, self.x, **weight, y=self.y, workspace=self.workspace)

    def check(self) -> None:
        """Run once on a poisoned output and compare tokens with what the generic kernel makes of the same operands.

        That is what runs for float32: codes bit by bit, codebooks from memory, no tensor cores.

        Raises:
            InternalError: the kernels disagree.
        """
        torch = torch_with_cuda()
        self.y.view(torch.uint8).fill_(0xA5)
        weight = self.weights[0]
        self.multiply(weight)
        tokens = some_rows(len(self.x))
        x = self.x[tokens].float().contiguous()
        exact = torch.empty(len(x), self.case.n, device="cuda")
        self.library.vq_linear(self.case.format, x, **(weight | {"bias": weight["bias"].float()}), y=exact)
        error = row_error(self.y[tokens].float(), exact)
        if not error <= _ROW_TOLERANCE:
            raise InternalError(f"the linear of {self.case.scheme} is wrong: row error {error:.2e}")


def _own_time(case: VqCase, library: VqLibrary) -> tuple[Timing, Any]:
    """Return the time, and x; the weights are gone then, for the peers'."""
    operands = _Operands(case, library)
    operands.check()
    return median_us([partial(operands.multiply, weight) for weight in operands.weights]), operands.x


def measure_vq(case: VqCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time every preset and the peers."""
    vq = VqLibrary(library.path)
    own = {}
    for scheme in FORMATS:
        of_scheme = replace(case, scheme=scheme)
        own[of_scheme], x = _own_time(of_scheme, vq)
    peers, missing = peer_times(WEIGHT_ONLY_PEERS, x, case.n)
    for of_scheme, timing in own.items():
        yield Row.of(
            timing,
            ceilings.floor_us(of_scheme.moved, 0, case.ops),
            suite=SUITE,
            case="linear",
            scheme=of_scheme.scheme,
            shape=(case.m, case.n, case.k, 0),
            moved=of_scheme.moved,
            ops=case.ops,
            peers=peers,
            missing=missing,
        )
