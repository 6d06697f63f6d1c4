"""Suite "mixq_quantize": the quantizing ops of MixQ, rated by the bandwidth of a copy."""

__all__ = ["QuantizeCase", "QuantizeOperands", "measure_quantize", "quantize_cases"]

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphopt.bench.capi import PRODUCERS, Library, torch_with_cuda
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.check import row_error
from graphopt.bench.producer import EPSILON, ProducerOperands
from graphopt.bench.record import Row
from graphopt.bench.timer import copies_for, median_us
from graphopt.errors import InternalError

SUITE = "mixq_quantize"
COLS = (4096, 8192, 11008, 28672)
ROWS = (16, 4096)
CAPACITY = 128
BFLOAT16_SIZE = (4096, 8192)  # M, K
_ROW_TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class QuantizeCase:
    """A producer on [M, K] with C outlier channels."""

    producer: str
    m: int
    k: int
    capacity: int = CAPACITY
    dtype: str = "float16"

    @property
    def adds(self) -> bool:
        """Whether it adds a residual, and writes the sum."""
        return "Add" in self.producer

    @property
    def inputs(self) -> int:
        """How many [M, K] inputs it reads."""
        return 2 if self.adds or "Gated" in self.producer or self.glu else 1

    @property
    def glu(self) -> bool:
        """Whether its two inputs are side by side in one."""
        return "GLU" in self.producer

    @property
    def bytes(self) -> int:
        """Bytes that must be moved: inputs, sum, codes, scales, outliers; parameters are read from caches."""
        return self.m * (self.k * (2 * self.inputs + 2 * self.adds + 1) + 4 + 2 * self.capacity)


def quantize_cases() -> Iterator[QuantizeCase]:
    """Every op and size of the suite."""
    for producer in PRODUCERS:
        for k in COLS:
            for m in ROWS:
                yield QuantizeCase(producer, m, k)
        yield QuantizeCase(producer, *BFLOAT16_SIZE, dtype="bfloat16")


class QuantizeOperands:
    """Inputs and outputs of one call.

    Args:
        case: what is called.
        shared: of which the set of outliers and the parameters are taken; else they are random.
    """

    def __init__(self, case: QuantizeCase, shared: "QuantizeOperands | None" = None) -> None:
        torch = torch_with_cuda()
        m, k, c = case.m, case.k, case.capacity
        self.case = case
        given = shared.inputs if shared is not None else None
        self.idx: Any = shared.idx if shared is not None else torch.randperm(k, device="cuda")[:c].sort().values.int()
        self.inputs: ProducerOperands = ProducerOperands(case.producer.removeprefix("MixQ"), (m, k), case.dtype, given)
        self.outputs = {
            "xq": torch.empty(m, k, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, c, dtype=self.inputs.x.dtype, device="cuda"),
        }
        if case.adds:
            self.outputs["sum"] = torch.empty_like(self.inputs.x)

    def run(self, library: Library, outputs: dict[str, Any] | None = None) -> None:
        """Enqueue the op."""
        library.quantize(
            self.case.producer, self.inputs.x, self.idx, outputs or self.outputs, epsilon=EPSILON, **self.inputs.more
        )

    def check(self, library: Library) -> None:
        """Run once on poisoned buffers; y must be right, and everything else exactly what follows from y.

        Raises:
            InternalError: the kernel is wrong.
        """
        torch = torch_with_cuda()
        for buffer in self.outputs.values():
            buffer.view(torch.uint8).fill_(0xA5)
        y = torch.empty(self.case.m, self.case.k, dtype=self.inputs.x.dtype, device="cuda")
        self.run(library, {**self.outputs, "y": y})
        with_y = {name: t.clone() for name, t in self.outputs.items()}
        self.run(library)
        kept = y.float()
        kept[:, self.idx.long()] = 0
        amax = kept.abs().amax(1, keepdim=True)
        limit = torch.full_like(amax, 127.0)  # a tensor: torch divides by or into a number through a reciprocal
        want = {
            "xq": torch.round(kept * (limit / amax)).to(torch.int8),
            "sx": amax / limit,
            "xo": y[:, self.idx.long()],
        }
        if self.case.adds:
            want["sum"] = self.inputs.sum
        for name, value in want.items():
            if not torch.equal(self.outputs[name], value) or not torch.equal(with_y[name], value):
                raise InternalError(f"{self.case.producer} K={self.case.k}: {name} does not follow from y")
        exact = self.inputs.produced()
        error = row_error(y.double(), exact)
        if not error <= _ROW_TOLERANCE[self.case.dtype]:
            raise InternalError(f"{self.case.producer} K={self.case.k}: y has a row error of {error:.2e}")


def measure_quantize(case: QuantizeCase, library: Library, ceilings: Ceilings) -> Iterator[Row]:
    """Check, then time one op."""
    torch = torch_with_cuda()
    torch.manual_seed(case.m + case.k)
    first = QuantizeOperands(case)
    copies = [first, *(QuantizeOperands(case, first) for _ in range(copies_for(case.bytes) - 1))]
    copies[0].check(library)
    timing = median_us([partial(o.run, library) for o in copies])
    shape = (case.m, None, case.k, case.capacity)
    yield Row.of(
        timing,
        ceilings.floor_us(case.bytes),
        suite=SUITE,
        case=case.producer,
        shape=shape,
        moved=case.bytes,
        dtype=case.dtype,
    )
