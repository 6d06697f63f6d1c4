"""Suite "vq_hadamard": the transform before `vq-quip4`, alone and fused with what makes its input.

Rated by the bandwidth of a copy. A peer of a fused op is the transform alone, which comes on top of its producer then.
"""

__all__ = ["HadamardCase", "hadamard_cases", "measure_hadamard"]

from collections.abc import Iterator
from functools import partial
from typing import Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.capi_vq import VqLibrary
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import row_error
from graphopt.bench.producer import EPSILON, WIDTHS, ProducerCase, ProducerOperands
from graphopt.bench.record import Row
from graphopt.bench.timer import copies_for, median_us
from graphopt.errors import InternalError

SUITE = "vq_hadamard"
COLS = (4096, 8192, 28672)
ROWS = (1, 16, 64, 512, 2048, 4096)
FUSED_ROWS = (1, 16, 512, 4096)
#: y and z are rounded to float16.
_ROW_TOLERANCE = 1e-3


class HadamardCase(ProducerCase):
    """A producer on [M, K], and the transform, whose signs are read from caches too."""


def hadamard_cases() -> Iterator[HadamardCase]:
    """Every op and size of the suite."""
    for k in COLS:
        for m in ROWS:
            yield HadamardCase("Plain", m, k)
    for producer, widths in WIDTHS.items():
        for k in widths:
            for m in FUSED_ROWS:
                yield HadamardCase(producer, m, k)


class _Operands:
    """Operands and outputs of one call; signs and parameters are those of ``shared``, if it is given."""

    def __init__(self, case: HadamardCase, shared: "_Operands | None" = None) -> None:
        torch = torch_with_cuda()
        self.case = case
        given = shared.inputs if shared is not None else None
        self.inputs: ProducerOperands = ProducerOperands(case.producer, (case.m, case.k), "float16", given)
        signs = torch.randint(0, 2, (case.k,), device="cuda").mul_(2).sub_(1).to(torch.int8)
        self.signs: Any = shared.signs if shared is not None else signs
        names = ("z", "sum") if "Add" in case.producer else ("z",)
        self.outputs = {name: torch.empty_like(self.inputs.x) for name in names}

    @property
    def block(self) -> int:
        return self.case.k & -self.case.k

    def run(self, library: VqLibrary, outputs: dict[str, Any] | None = None) -> None:
        library.hadamard(
            self.case.producer, self.inputs.x, self.signs, self.block, outputs or self.outputs, epsilon=EPSILON,
            **self.inputs.more,
        )  # fmt: skip

    def check(self, library: VqLibrary) -> None:
        """Run once on poisoned buffers; y must be right, and z the transform of y.

        Raises:
            InternalError: the kernel is wrong.
        """
        torch = torch_with_cuda()
        outputs = {**self.outputs, "y": torch.empty_like(self.inputs.x)}
        if self.case.producer == "Plain":
            outputs["y"] = self.inputs.x
        for name in self.outputs:
            outputs[name].view(torch.uint8).fill_(0xA5)
        self.run(library, outputs if self.case.producer != "Plain" else self.outputs)
        with_y = outputs["z"].clone()
        self.run(library)
        if not torch.equal(with_y, self.outputs["z"]):
            raise InternalError(f"{self.case}: z depends on whether y is written")
        if "sum" in outputs and not torch.equal(outputs["sum"], self.inputs.sum):
            raise InternalError(f"{self.case}: sum is wrong")
        error = max(
            row_error(outputs["y"].double(), self.inputs.produced()),
            row_error(self.outputs["z"].double(), self._transformed(outputs["y"])),
        )
        if not error <= _ROW_TOLERANCE:
            raise InternalError(f"{self.case}: a row error of {error:.2e}")

    def _transformed(self, y: Any) -> Any:
        torch = torch_with_cuda()
        values, width = y.double() * self.signs, 1
        while width < self.block:
            pairs = values.view(len(y), -1, 2, width)
            values = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2)
            width *= 2
        return values.view(len(y), -1) / self.block**0.5


def measure_hadamard(case: HadamardCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time one op."""
    vq, torch = VqLibrary(library.path), torch_with_cuda()
    torch.manual_seed(case.m + case.k)
    first = _Operands(case)
    copies = [first, *(_Operands(case, first) for _ in range(copies_for(case.moved) - 1))]
    first.check(vq)
    timing = median_us([partial(o.run, vq) for o in copies])
    del first, copies
    peers = {}
    if case.producer != "Plain":
        alone = HadamardCase("Plain", case.m, case.k)
        transforms = [_Operands(alone) for _ in range(copies_for(alone.moved))]
        peers = {"transform alone": median_us([partial(o.run, vq) for o in transforms]).us}
    yield Row.of(
        timing,
        ceilings.floor_us(case.moved),
        suite=SUITE,
        case="VQHadamard" if case.producer == "Plain" else f"VQ{case.producer}Hadamard",
        scheme="vq-quip4",
        shape=(case.m, None, case.k, 0),
        moved=case.moved,
        peers=peers,
    )
