"""Check and time every kernel of vector-quantized linears; hadamard.py does it for the transform.

    python3 benchmarks/kernels/vq.py --output DIR [--check-only] [--kernels expanded ...]

needs PyTorch, the checkout on PYTHONPATH and carry/libvq.so (build_vq.sh). Kernels are compared with the decoded
weight in float64. Results: DIR/vq_check.json and DIR/vq_kernels.json, written as they come; the second is what
trt_plugins/vq/linear/plan.cpp is fitted to.
"""

import argparse
import ctypes
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphopt.bench.capi_vq import VqFormat
from graphopt.bench.timer import copies_for, median_us
from graphopt.bench.vq_linear import FORMATS

ROOT = Path(__file__).resolve().parents[2]
TYPES = (torch.float32, torch.float16, torch.bfloat16)
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Of the terms' magnitude: sums in float32, which tensor cores truncate.
FLOAT32_ERROR = 2.0**-21
KERNELS = ("few8", "few16", "rows8", "table", "tile64", "tile128", "tile256", "expanded", "generic")
SPLITTING = ("few", "tile", "expanded")  # whose blocks can share K; or W be in the smallest slabs instead
PLANNED = -1
#: Tokens, rows and columns that are no multiples of what blocks take, and X in panels.
CHECKS = (
    (1, 136, 1032), (1, 1000, 4104), (1, 256, 64), (2, 261, 8192), (5, 264, 1544), (8, 1000, 28680), (9, 264, 1544),
    (16, 520, 2056), (50, 136, 1032), (100, 264, 520), (130, 520, 4104), (600, 2056, 1032), (3, 64, 1030),
    (2000, 2040, 2056),
)  # fmt: skip
#: Formats that no kernel but `expanded` and the generic one takes here: any v, b, r and tiles; several reads of 32 bits
#: for eight columns; codebooks that have no room in shared memory; more tiles than blocks.
OTHERS = {
    "vq-4-8-2": VqFormat(4, 8, 2),
    "vq-2-6-1": VqFormat(2, 6, 1),
    "vq-8-10-1": VqFormat(8, 10, 1),
    "vq-16-12-2": VqFormat(16, 12, 2),
    "vq-8-16-1": VqFormat(8, 16, 1),
    "vq-4-8-2-t256": VqFormat(4, 8, 2, tile=256),
    "vq-16-8-1-t32": VqFormat(16, 8, 1, tile=32),
    "vq-2-9-3": VqFormat(2, 9, 3),
    "vq-4-11-3": VqFormat(4, 11, 3),
    "vq-2-13-1": VqFormat(2, 13, 1),
    "vq-4-15-1": VqFormat(4, 15, 1),
    "vq-2-16-1": VqFormat(2, 16, 1),
    "vq-4-8-1-t8": VqFormat(4, 8, 1, tile=8),
    "vq-e8-1": VqFormat(8, 16, 1, lattice=True),
}
OTHERS_CHECKS = ((1, 136, 1032), (70, 264, 520), (130, 520, 1544), (300, 1032, 2056))
TIMES = [
    (m, n, k)
    for n, k in ((8192, 8192), (28672, 8192), (8192, 28672), (4096, 4096))
    for m in (1, 4, 16, 32, 64, 128, 256, 512)
]
GUARD = 512  # elements after y that must not change


def by_path(name: str) -> Any:
    """A numpy module of passes/vq: graphopt.passes needs more packages than a GPU host has."""
    spec = importlib.util.spec_from_file_location(f"vq_{name}", ROOT / f"passes/vq/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


e8 = by_path("e8")


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


@dataclass
class Operands:
    """Random operands of one linear; some channels are 20 times larger, and a second token has a NaN."""

    fmt: VqFormat
    dtype: torch.dtype
    shape: tuple[int, int, int]
    nan: bool = True
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m, n, k = self.shape
        torch.manual_seed(m + n + k)
        x = torch.randn(m, k, device="cuda")
        x[:, torch.randint(0, k, (1 + k // 100,), device="cuda")] *= 20
        if self.nan and m > 1:
            x[1, 5] = math.nan
        lattice = self.fmt.lattice
        books = torch.empty(0) if lattice else torch.randn(self.fmt.codebooks_shape(n, k), device="cuda").mul_(0.5)
        codes = torch.randint(-128, 128, (n, self.fmt.row_bytes(k)), device="cuda", dtype=torch.int8)
        self.tensors = {
            "x": x.to(self.dtype),
            "codes": codes,
            "books": books.half(),
            "ratios": torch.tensor(e8.RATIOS, device="cuda", dtype=torch.float32),
            "scale": torch.rand(n, device="cuda") * 0.1 + 0.01,
            "bias": torch.randn(n, device="cuda").to(self.dtype),
            "y": torch.full((m * n + GUARD,), 7.0, device="cuda", dtype=self.dtype),
            "workspace": torch.empty(2 * (n + 512) * k + 4 * n + 4096, device="cuda", dtype=torch.int8),
        }

    def another(self) -> "Operands":
        """The same with codes at another address."""
        copy = object.__new__(Operands)
        copy.__dict__ |= self.__dict__ | {"tensors": self.tensors | {"codes": self.tensors["codes"].clone()}}
        return copy

    def codes(self) -> torch.Tensor:
        """The codes [N, ceil(K / v), r]."""
        (_, n, k), fmt = self.shape, self.fmt
        positions, r, b = -(-k // fmt.vector), fmt.residuals, fmt.bits
        stream = torch.nn.functional.pad(self.tensors["codes"].view(torch.uint8).int(), (0, 3))
        first = torch.arange(positions * r, device="cuda") * b
        word = stream[:, first // 8] | stream[:, first // 8 + 1] << 8 | stream[:, first // 8 + 2] << 16
        return ((word >> (first % 8)) & ((1 << b) - 1)).view(n, positions, r).long()

    def weight(self) -> torch.Tensor:
        """The decoded weight [N, K] float64."""
        (_, n, k), fmt, t, codes = self.shape, self.fmt, self.tensors, self.codes()
        positions, r = codes.shape[1:]
        if fmt.lattice:
            points, signs, shifts = (
                torch.tensor(np.array(a), device="cuda").double() for a in (e8.table(), *e8.signs_and_shifts())
            )
            entries = points[codes & 255] * signs[codes >> 8] + shifts[codes >> 8]
            total = (entries * t["ratios"].double()[: fmt.residuals, None]).sum(2)
        else:
            rows, columns = fmt.tiles(n, k)
            g = (torch.arange(n, device="cuda") // rows)[:, None]
            h = (torch.arange(positions, device="cuda") * fmt.vector // columns)[None]
            total = sum(t["books"].double()[g, h, i, codes[:, :, i]] for i in range(r))
        return total.reshape(n, -1)[:, :k]

    def product_size(self) -> torch.Tensor:
        """Root of the sum of squares of what one token's vectors and the entries of a whole weight multiply to [N]."""
        fmt, x, books = self.fmt, self.tensors["x"][0].double(), self.tensors["books"].double()[0, 0]
        x = torch.nn.functional.pad(x, (0, -len(x) % fmt.vector)).view(-1, fmt.vector)
        products, codes = books @ x.T, self.codes()  # [r, 2^b, K / v]
        at = torch.arange(len(x), device="cuda")
        return sum(products[i, codes[:, :, i], at].square().sum(1) for i in range(fmt.residuals)).sqrt()

    def excess(self, *, products: bool = False) -> float:
        """Largest error of y as a multiple of its bound; NaN belongs to the token that has one, and to no other.

        Args:
            products: with entries are rounded to float16 each. Where entries of a sum nearly cancel each other, that
                is more than roundings of the sum.
        """
        (m, n, _), t = self.shape, self.tensors
        y, w, x, scale = t["y"][: m * n].view(m, n).double(), self.weight(), t["x"].double(), t["scale"].double()
        exact = x @ w.T * scale + t["bias"].double()
        size = (x.square() @ w.square().T).sqrt() * scale
        # Elements of w are rounded to T like y, entries and their sums both where T is not the codebooks' type.
        roundings = (5 if self.dtype == torch.bfloat16 else 3) * max(2, self.fmt.residuals) / 2
        bound = UNIT_ROUNDOFF[self.dtype] * (exact.abs() + roundings * size)
        bound += FLOAT32_ERROR * (x.abs() @ w.abs().T * scale) + 1e-6
        if products:
            bound += 3 * UNIT_ROUNDOFF[torch.float16] * self.product_size() * scale
        ratio = (y - exact).abs() / bound
        if self.nan and m > 1:
            if not y[1].isnan().all():
                return math.inf
            ratio[1] = 0
        return float(ratio.nan_to_num(nan=math.inf).max())


class Library:
    """The C functions of vq.cu."""

    def __init__(self) -> None:
        self.c = ctypes.CDLL(str(ROOT / "carry/libvq.so"))
        self.c.vq_status.restype = ctypes.c_char_p
        self.c.vq_linear.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 3
        self.c.vq_expanded.argtypes = [ctypes.c_int, ctypes.c_int64] + [ctypes.c_void_p] * 3

    def linear(self, operands: Operands, kernel: int, split: int = 1) -> bool:
        """Enqueue one; False where the kernel does not take the operands.

        Raises:
            RuntimeError: it was refused for another reason.
        """
        return self._enqueue(partial(self.c.vq_linear, kernel, split), operands)

    def expanded(self, operands: Operands, slab_rows: int, *, alone: bool) -> bool:
        """The same with W in slabs of so many rows; ``alone``: expand them, without the product."""
        return self._enqueue(partial(self.c.vq_expanded, int(alone), slab_rows), operands)

    def _enqueue(self, call: Callable[..., int], operands: Operands) -> bool:
        fmt, (m, n, k), t = operands.fmt, operands.shape, operands.tensors
        values = TYPES.index(operands.dtype), m, n, k, fmt.vector, fmt.bits, fmt.residuals, *fmt.tiles(n, k)
        names = ("x", "codes", "books", "ratios", "scale", "bias", "y", "workspace")
        pointers = [None if name == "books" and fmt.lattice else t[name].data_ptr() for name in names]
        sizes, addresses = (ctypes.c_int64 * len(values))(*values), (ctypes.c_void_p * len(names))(*pointers)
        status = call(sizes, addresses, stream())
        if status > 0:
            raise RuntimeError(self.c.vq_status(status).decode())
        return status == 0


def has_products_of_16_bits(operands: Operands) -> bool:
    """Whether the table kernel of these operands, if they have one, looks up products of 16 bits."""
    return operands.fmt.bits == 12 and operands.shape[0] == 1 and operands.dtype != torch.float32


def check_linear(library: Library, operands: Operands, kernel: int, split: int) -> dict[str, Any] | None:
    """Run twice; the excess, and what else is wrong. None where the kernel does not take the operands."""
    y, (m, n, _) = operands.tensors["y"], operands.shape
    y.fill_(7.0)
    if not library.linear(operands, kernel, split):
        return None
    first = y.clone()
    y[: m * n] = 3.0
    library.linear(operands, kernel, split)
    same = torch.equal(first.nan_to_num(5.0), y.nan_to_num(5.0)) and bool((y[m * n :] == 7).all())
    excess = operands.excess(products=kernel in (PLANNED, KERNELS.index("table")) and has_products_of_16_bits(operands))
    return {"excess": round(excess, 4), "same_bits": same, "failed": not (same and excess <= 1)}


def linear_checks(library: Library, kernels: tuple[str, ...] = KERNELS) -> Iterator[dict[str, Any]]:
    """Every preset with `kernels`, or what is planned where these are all, and other formats with `expanded`."""
    planned = [(PLANNED, 1)] if kernels == KERNELS else []
    every = [*planned, *((KERNELS.index(name), s) for name in kernels for s in (1, 2))]
    for scheme, fmt in (FORMATS | OTHERS).items():
        for dtype in TYPES:
            for shape in CHECKS if scheme in FORMATS else OTHERS_CHECKS:
                if dtype == torch.float32 and shape[0] * shape[1] * shape[2] > 1 << 26:
                    continue  # the generic kernel takes long
                operands = Operands(fmt, dtype, shape)
                for kernel, split in every:
                    if split == 2 and not KERNELS[kernel].startswith(SPLITTING):
                        continue
                    if scheme in OTHERS and KERNELS[kernel] != "expanded":
                        continue
                    if result := check_linear(library, operands, kernel, split):
                        name = "planned" if kernel == PLANNED else KERNELS[kernel]
                        where = {"scheme": scheme, "dtype": str(dtype)[6:], "kernel": name, "split": split}
                        yield {**where, "MNK": shape, **result}


def times(library: Library) -> Iterator[dict[str, Any]]:
    """Every kernel at every size, beside torch's float16 product."""
    for m, n, k in TIMES:
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies_for(2 * n * k))]
        torch_us = median_us([partial(torch.mm, x, w.t()) for w in weights]).us
        del weights
        for scheme, fmt in FORMATS.items():
            one = Operands(fmt, torch.float16, (m, n, k), nan=False)
            every = [one, *(one.another() for _ in range(copies_for(one.tensors["codes"].numel()) - 1))]
            for kernel, name in enumerate(KERNELS[:-1]):
                for split in (1, 2) if name.startswith(SPLITTING) else (1,):
                    if library.linear(one, kernel, split):
                        us = median_us([partial(library.linear, o, kernel, split) for o in every]).us
                        row = {"scheme": scheme, "M": m, "N": n, "K": k, "kernel": name, "split": split}
                        yield {**row, "us": round(us, 2), "torch_fp16": round(torch_us, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="those that are checked")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    library, failures, rows = Library(), 0, []
    for row in linear_checks(library, tuple(options.kernels)):
        rows.append(row)
        failures += row["failed"]
        if row["failed"]:
            print(row, flush=True)
        (options.output / "vq_check.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} checks, {failures} failures", flush=True)
    if not options.check_only:
        rows = []
        for row in times(library):
            rows.append(row)
            print(row, flush=True)
            (options.output / "vq_kernels.json").write_text(json.dumps(rows, indent=1) + "\n")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
