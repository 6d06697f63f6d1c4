"""Suite "fused": norms and activations by themselves, rated by the bandwidth of a copy.

A peer is what torch makes of the same operands.
"""

__all__ = ["FusedCase", "fused_cases", "measure_fused"]

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.capi_fused import FusedLibrary
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import row_error
from graphopt.bench.producer import EPSILON, WIDTHS, ProducerCase, ProducerOperands
from graphopt.bench.record import Row
from graphopt.bench.timer import copies_for, median_us
from graphopt.errors import InternalError

SUITE = "fused"
ROWS = (1, 16, 512, 4096)
#: y is rounded to float16.
_ROW_TOLERANCE = 1e-3


class FusedCase(ProducerCase):
    """A producer on [M, K]."""


def fused_cases() -> Iterator[FusedCase]:
    """Every op and size of the suite."""
    for producer, widths in WIDTHS.items():
        for k in widths:
            for m in ROWS:
                yield FusedCase(producer, m, k)


class _Operands:
    """Operands and outputs of one call; parameters are those of ``shared``, if it is given."""

    def __init__(self, case: FusedCase, shared: "_Operands | None" = None) -> None:
        torch = torch_with_cuda()
        self.case = case
        given = shared.inputs if shared is not None else None
        self.inputs: ProducerOperands = ProducerOperands(case.producer, (case.m, case.k), "float16", given)
        names = ("y", "sum") if "Add" in case.producer else ("y",)
        self.outputs = {name: torch.empty_like(self.inputs.x) for name in names}

    def run(self, library: FusedLibrary) -> None:
        library.fused(self.case.producer, self.inputs.x, self.outputs, epsilon=EPSILON, **self.inputs.more)

    def check(self, library: FusedLibrary) -> None:
        """Run once on poisoned buffers.

        Raises:
            InternalError: the kernel is wrong.
        """
        torch = torch_with_cuda()
        for output in self.outputs.values():
            output.view(torch.uint8).fill_(0xA5)
        self.run(library)
        if "sum" in self.outputs and not torch.equal(self.outputs["sum"], self.inputs.sum):
            raise InternalError(f"{self.case}: sum is wrong")
        error = row_error(self.outputs["y"].double(), self.inputs.produced())
        if not error <= _ROW_TOLERANCE:
            raise InternalError(f"{self.case}: a row error of {error:.2e}")

    def peer(self) -> Callable[[], Any]:
        """The same in torch."""
        functional, kind = torch_with_cuda().nn.functional, self.case.producer
        x, more = self.inputs.x, self.inputs.more
        if kind.endswith("Norm"):
            gamma = more["gamma"]

            def norm() -> Any:
                v = x + more["other"] if "Add" in kind else x
                if "RMS" in kind:
                    return functional.rms_norm(v, v.shape[1:], gamma, EPSILON)
                return functional.layer_norm(v, v.shape[1:], gamma, more["beta"], EPSILON)

            return norm
        name = kind.removeprefix("Gated")
        form = "tanh" if name == "GeluTanh" else "none"

        def activation() -> Any:
            y = functional.silu(x) if name == "Silu" else functional.gelu(x, approximate=form)
            return y * more["other"] if "Gated" in kind else y

        return activation


def measure_fused(case: FusedCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time one op."""
    fused, torch = FusedLibrary(library.path), torch_with_cuda()
    torch.manual_seed(case.m + case.k)
    first = _Operands(case)
    copies = [first, *(_Operands(case, first) for _ in range(copies_for(case.moved) - 1))]
    first.check(fused)
    yield Row.of(
        median_us([partial(o.run, fused) for o in copies]),
        ceilings.floor_us(case.moved),
        suite=SUITE,
        case=f"Fused{case.producer}",
        scheme="",
        shape=(case.m, None, case.k, 0),
        moved=case.moved,
        peers={"torch": median_us([o.peer() for o in copies]).us},
    )
