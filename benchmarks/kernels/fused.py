"""Check norms and activations by themselves, through the C API and TensorRT's plugin interface.

    python3 benchmarks/kernels/fused.py --output DIR --library LIBRARY [--host HOST_V3]

needs PyTorch, ml_dtypes and the checkout on PYTHONPATH. y is compared with the numpy layers that define the ops, sum to
the bit. Results: DIR/fused_check.json, written as they come; `graphopt bench kernels --suite fused` takes times.
"""

import argparse
import ctypes
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hadamard import EPSILON, PRODUCERS, Case, largest
from v3_cases import NAMES, read, run
from vq import TYPES

#: rows, K. Few rows and many, a row of part of a warp, of some warps, of all that a block has and of more; no vectors.
CHECKS = (
    (1, 4096), (9, 64), (9, 576), (9, 4096), (5, 11008), (3, 16384), (3, 16392), (9, 100), (7, 1), (1, 7), (0, 64),
    (265, 24), (300, 1024), (301, 4096), (2000, 4096), (270, 8200), (266, 32768), (265, 40000), (70000, 64),
)  # fmt: skip
THROUGH_PLUGINS = ((0, 64), (9, 64), (9, 4096), (300, 1024), (5, 100))
#: Elements that numpy's erf, a Python loop, is given.
SLOW = 100_000
#: Rows of special values, where there are so many; NaN is in row 1, see `Case`.
ZERO, FAR, INFINITE = 2, 3, 4
#: Rounding of a mean of 300, over a deviation of 2.
FAR_ERROR = 300 * 2.0**-20


class Library:
    """The C function of producers by themselves."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.c.graphopt_status_string.restype = ctypes.c_char_p
        self.c.graphopt_fused.argtypes = [number] * 2 + [long] * 2 + [pointer] * 4 + [ctypes.c_float] + [pointer] * 3

    def run(self, case: Case, outputs: dict[str, torch.Tensor]) -> None:
        """Enqueue `case`.

        Raises:
            RuntimeError: the library refused it.
        """
        t = case.tensors
        inputs = [t[name].data_ptr() if name in t else None for name in ("x", "other", "gamma", "beta")]
        written = [outputs[name].data_ptr() if name in outputs else None for name in ("y", "sum")]
        kind = PRODUCERS.index(case.producer), TYPES.index(case.dtype)
        stream = torch.cuda.current_stream().cuda_stream
        if status := self.c.graphopt_fused(*kind, case.rows, case.k, *inputs, EPSILON, *written, stream):
            raise RuntimeError(self.c.graphopt_status_string(status).decode())


def made(producer: str, dtype: torch.dtype, rows: int, k: int, shift: int = 0) -> Case:
    """A case with rows of special values."""
    case = Case(producer, dtype, rows, k, 1, nan=rows > 1 and k > 5, shift=shift)
    if rows > INFINITE and k > 5:
        x = case.tensors["x"]
        x[ZERO] = 0
        x[FAR] += 300
        x[INFINITE, k - 1] = math.inf
    return case


def failures(case: Case, y: np.ndarray, total: np.ndarray | None) -> tuple[float, list[str]]:
    """The worst error of y over its bound, and what is wrong; y and sum (rows, K) float64."""
    source, want = case.expected()
    special = case.rows > INFINITE and case.k > 5
    finite = np.isfinite(want.astype(np.float64)).all(axis=1)
    excess = case.excess(y, want)
    if special and "Layer" in case.producer:
        bound = np.abs(y[FAR] - want[FAR].astype(np.float64)) / np.maximum(excess[FAR], 1e-30) + FAR_ERROR
        excess[FAR] = np.abs(y[FAR] - want[FAR].astype(np.float64)) / bound
    worst = largest(excess[finite])
    wrong = [] if worst <= 1 else ["y"]
    if not np.array_equal(np.isnan(y), np.isnan(want.astype(np.float64))):
        wrong.append("nan")
    if total is not None and not np.array_equal(total, source.astype(np.float64), equal_nan=True):
        wrong.append("sum")
    return worst, wrong


def check(library: Library, case: Case) -> dict[str, Any]:
    adds = "Add" in case.producer
    outputs = case.outputs("y", "sum") if adds else case.outputs("y")
    library.run(case, outputs)
    alone = case.outputs("y")
    library.run(case, alone)
    size = case.rows * case.k
    flat = {name: v.double().cpu().numpy() for name, v in outputs.items()}
    got = {name: v[:size].reshape(case.rows, case.k) for name, v in flat.items()}
    worst, wrong = failures(case, got["y"], got.get("sum"))
    if not all((v[size:] == 7).all() for v in flat.values()):
        wrong.append("guard")
    if not torch.equal(outputs["y"].nan_to_num(5.0), alone["y"].nan_to_num(5.0)):
        wrong.append("y depends on sum")
    return {**where(case), "y": round(worst, 4), "wrong": wrong}


def where(case: Case) -> dict[str, Any]:
    return {"producer": case.producer, "dtype": str(case.dtype)[6:], "shape": (case.rows, case.k), "shift": case.shift}


def checks(path: Path, producer: str) -> list[dict[str, Any]]:
    """Every shape and type of a producer, in a process of its own."""
    library = Library(path)
    rows = []
    for dtype in TYPES:
        for m, k in CHECKS:
            if "Gelu" not in producer or m * k <= SLOW:
                rows.append(check(library, made(producer, dtype, m, k)))
        rows.append(check(library, made(producer, dtype, 9, 1024, shift=1)))
    return rows


def through_library(path: Path) -> Iterator[dict[str, Any]]:
    """Numpy's side takes minutes of one processor."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for rows in pool.map(partial(checks, path), PRODUCERS[1:]):
            yield from rows


def through_plugins(library: Path, host: Path) -> Iterator[dict[str, Any]]:
    cases = {
        f"case{number}": made(producer, dtype, rows, k)
        for number, (producer, dtype, (rows, k)) in enumerate(
            (p, t, s) for p in PRODUCERS[1:] for t in TYPES for s in THROUGH_PLUGINS
        )
    }
    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), []
        for label, case in cases.items():
            if "Gelu" in case.producer and case.rows * case.k > SLOW:
                cases[label] = case = replace(case, rows=9, tensors={})
            lines.append(f"case {label} Fused{case.producer}")
            if "Norm" in case.producer:
                lines.append(f"field epsilon f {EPSILON!r}")
            if "Add" in case.producer:
                lines.append("field emit_sum i 1")
            for operand, value in case.arrays().items():
                (folder / f"{label}.{operand}.in").write_bytes(value.tobytes())
                shape = value.shape if value.ndim == 1 else (1, *value.shape)
                lines.append(f"input {NAMES[value.dtype]} {label}.{operand}.in {' '.join(map(str, shape))}")
            lines.append("end")
        (folder / "cases.txt").write_text("\n".join(lines) + "\n")
        printed = run(host, library, folder)
        for label, case in cases.items():
            y, *total = (output[0].astype(np.float64) for output in read(folder, label, printed))
            worst, wrong = failures(case, y, total[0] if total else None)
            yield {**where(case), "plugin": True, "y": round(worst, 4), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--host", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    routes = [through_library(options.library)]
    if options.host is not None:
        routes.append(through_plugins(options.library, options.host))
    for route in routes:
        for row in route:
            rows.append(row)
            if row["wrong"]:
                print(row, flush=True)
    (options.output / "fused_check.json").write_text(json.dumps(rows) + "\n")
    for producer in PRODUCERS[1:]:
        own = [row for row in rows if row["producer"] == producer]
        failed = sum(bool(row["wrong"]) for row in own)
        print(f"{producer}: {len(own)} checks, {failed} failed, worst of the bound {max(row['y'] for row in own)}")
    failed = sum(bool(row["wrong"]) for row in rows)
    print(f"{len(rows)} checks, {failed} failures", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
