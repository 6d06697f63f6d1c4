"""Check the Hadamard transform of vector-quantized weights, alone and fused with what comes before it.

    python3 benchmarks/kernels/hadamard.py --output DIR --library LIBRARY

needs PyTorch, ml_dtypes and the checkout on PYTHONPATH. y is compared with the numpy layers that define the ops, z with
the transform of the y that the kernel itself has written, in float64. Results: DIR/hadamard_check.json, written as
they come; `graphopt bench kernels --suite vq_hadamard` takes times.
"""

import argparse
import ctypes
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from vq import TYPES, UNIT_ROUNDOFF, by_path

from graphopt.numerics import layers

PRODUCERS = (
    "Plain", "RMSNorm", "AddRMSNorm", "LayerNorm", "AddLayerNorm", "GatedSilu", "GatedGelu", "GatedGeluTanh", "Gelu",
    "GeluTanh",
)  # fmt: skip
ACTIVATIONS = {"Silu": layers.silu, "Gelu": layers.gelu, "GeluTanh": layers.gelu_tanh}
NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
#: 1 + erf and 1 + tanh cancel, in the layers for every T, in the kernel for float32: of |gate up|, or of |x|.
CANCELLATION = 2.0**-23
#: What is left of a mean in float32.
NORM_ERROR = 2.0**-20
#: Relative error of a float32 norm or activation before it is rounded to T (producer.cuh).
PRODUCER_ERROR = {torch.float32: 2.0**-20, torch.float16: 2.0**-13, torch.bfloat16: 2.0**-13}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
#: Of the root of the sum of squares: float32 sums of a block, which tensor cores truncate.
SUM_ERROR = 2.0**-21
EPSILON = 1e-5
GUARD = 512  # elements after an output that must not change
#: rows, K, block. A warp with several blocks, two, four, eight and more warps to a block, ragged rows, padding, K of
#: no vector, a block beyond a span.
CHECKS = (
    (5, 576, 64), (3, 768, 256), (4, 1536, 512), (3, 5120, 1024), (2, 6144, 2048), (3, 4096, 4096), (2, 11008, 256),
    (2, 8192, 8192), (1, 16384, 16384), (2, 128, 128), (3, 1000, 64), (5, 60, 16), (1, 7, 1), (2, 100, 32),
)  # fmt: skip
PLAIN_CHECKS = ((3, 28672, 4096), (1, 32768, 32768), (2, 65536, 65536), (130, 576, 64), (70000, 64, 64))

hadamard = by_path("hadamard")


class Library:
    """The C function of the transform."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.c.graphopt_status_string.restype = ctypes.c_char_p
        self.c.graphopt_vq_hadamard.argtypes = (
            [number] * 2 + [long] * 4 + [pointer] * 5 + [ctypes.c_float] + [pointer] * 4
        )

    def run(self, case: "Case", outputs: dict[str, torch.Tensor]) -> None:
        """Enqueue `case`; outputs that are missing are not written.

        Raises:
            RuntimeError: the library refused it.
        """
        t = case.tensors
        inputs = [t[name].data_ptr() if name in t else None for name in ("x", "other", "gamma", "beta", "signs")]
        written = [outputs[name].data_ptr() if name in outputs else None for name in ("z", "sum", "y")]
        sizes = case.rows, case.k, case.channels, case.block
        stream = torch.cuda.current_stream().cuda_stream
        kind = PRODUCERS.index(case.producer), TYPES.index(case.dtype)
        if status := self.c.graphopt_vq_hadamard(*kind, *sizes, *inputs, EPSILON, *written, stream):
            raise RuntimeError(self.c.graphopt_status_string(status).decode())


@dataclass
class Case:
    """Random operands; some channels are 20 times larger.

    Attributes:
        nan: whether the second row has a NaN.
        shift: elements that x lies off its alignment.
    """

    producer: str
    dtype: torch.dtype
    rows: int
    k: int
    block: int
    nan: bool = True
    shift: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.rows + self.k + self.block)
        self.tensors["x"] = self._rows()
        if self.nan and self.rows > 1:
            self.tensors["x"][1, 5] = math.nan
        if "Add" in self.producer or "Gated" in self.producer:
            self.tensors["other"] = self._rows()
        if "Norm" in self.producer:
            self.tensors["gamma"] = torch.rand(self.k, device="cuda").add(0.5).to(self.dtype)
        if "Layer" in self.producer:
            self.tensors["beta"] = torch.randn(self.k, device="cuda").to(self.dtype)
        signs = torch.randint(0, 2, (self.channels,), device="cuda").mul(2).sub(1)
        self.tensors["signs"] = signs.to(torch.int8)

    @property
    def channels(self) -> int:
        """K padded to a multiple of the block."""
        return -(-self.k // self.block) * self.block

    def _rows(self) -> torch.Tensor:
        x = torch.randn(self.rows, self.k, device="cuda") * 2
        x[:, torch.randint(0, self.k, (1 + self.k // 100,), device="cuda")] *= 20
        whole = torch.empty(self.rows * self.k + self.shift, device="cuda", dtype=self.dtype)
        whole[self.shift :] = x.to(self.dtype).flatten()
        return whole[self.shift :].view(self.rows, self.k)

    def outputs(self, *names: str) -> dict[str, torch.Tensor]:
        """Outputs filled with 7, with a guard behind each."""
        width = {"z": self.channels, "sum": self.k, "y": self.k}
        return {
            name: torch.full((self.rows * width[name] + GUARD,), 7.0, device="cuda", dtype=self.dtype) for name in names
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Operands in numpy, T as its own type."""
        t = self.tensors
        return {name: v.float().cpu().numpy().astype(NUMPY[self.dtype]) for name, v in t.items() if name != "signs"}

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """What is normalized, and y, by the numpy layers."""
        a = self.arrays()
        x, other = a["x"], a.get("other")
        if "Add" in self.producer:
            with np.errstate(invalid="ignore"):
                x = (x.astype(np.float32) + other.astype(np.float32)).astype(x.dtype)
        if self.producer == "Plain":
            return x, x
        if "RMS" in self.producer:
            return x, layers.rms_norm(x, a["gamma"], EPSILON)
        if "Layer" in self.producer:
            return x, layers.layer_norm(x, a["gamma"], a["beta"], EPSILON)
        activation = ACTIVATIONS[self.producer.removeprefix("Gated")]
        return x, layers.gated(activation, x, other if other is not None else np.ones((), x.dtype))

    def lost(self) -> np.ndarray | float:
        """Error of float32 arithmetic that does not shrink with y."""
        if "Norm" in self.producer:
            return NORM_ERROR
        a = self.arrays()
        size = np.abs(a["x"].astype(np.float64)) * np.abs(a["other"].astype(np.float64) if "other" in a else 1.0)
        return CANCELLATION * size

    def excess(self, y: np.ndarray, want: np.ndarray) -> np.ndarray:
        """Errors of y over their bounds."""
        exact = want.astype(np.float64)
        # The layers round, and so does the kernel, whose error before that can move it to the next value of T.
        relative = 2 * UNIT_ROUNDOFF[self.dtype] + PRODUCER_ERROR[self.dtype]
        with np.errstate(invalid="ignore"):
            return np.abs(y - exact) / (relative * np.abs(exact) + 2 * SMALLEST[self.dtype] + self.lost())


def largest(ratio: np.ndarray) -> float:
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def check(library: Library, case: Case) -> dict[str, Any]:
    """Largest errors of y and z over their bounds; NaN belongs to the row that has one, and to no other."""
    names = ["z", *(["sum"] if "Add" in case.producer else []), *(["y"] if case.producer != "Plain" else [])]
    outputs = case.outputs(*names)
    library.run(case, outputs)
    alone = case.outputs("z")
    library.run(case, alone)
    flat = {name: v.double().cpu().numpy() for name, v in outputs.items()}
    widths = {"z": case.channels, "sum": case.k, "y": case.k}
    got = {name: v[: case.rows * widths[name]].reshape(case.rows, -1) for name, v in flat.items()}
    guards = all((v[case.rows * widths[name] :] == 7).all() for name, v in flat.items())
    same = torch.equal(outputs["z"].nan_to_num(5.0), alone["z"].nan_to_num(5.0))
    source, want = case.expected()
    clean = np.arange(case.rows) != (1 if case.nan else -1)
    ratio = 0.0
    y = got.get("y", want.astype(np.float64))
    if "y" in got:
        ratio = largest(case.excess(y, want)[clean])
    if "sum" in got:
        same = same and np.array_equal(got["sum"][clean], source.astype(np.float64)[clean])
    padded = np.pad(y, ((0, 0), (0, case.channels - case.k)))
    z = exact_transform(padded, case.tensors["signs"].cpu().numpy(), case.block)
    size = np.sqrt(np.square(padded).reshape(case.rows, -1, case.block).sum(-1, keepdims=True))
    spread = np.broadcast_to(size, (*size.shape[:2], case.block)).reshape(case.rows, -1)
    bound = UNIT_ROUNDOFF[case.dtype] * np.abs(z) + SUM_ERROR * spread + SMALLEST[case.dtype]
    excess = largest((np.abs(got["z"] - z) / bound)[clean])
    spread_nan = True
    if case.nan and case.rows > 1:
        block = slice(None) if "Norm" in case.producer else slice(0, case.block)
        spread_nan = bool(np.isnan(got["z"][1, block]).all()) and bool(np.isfinite(got["z"][clean]).all())
    failed = not (guards and same and spread_nan and excess <= 1 and ratio <= 1)
    where = {"producer": case.producer, "dtype": str(case.dtype)[6:], "shape": (case.rows, case.k, case.block)}
    found = {"y": round(ratio, 4), "z": round(excess, 4), "guards": bool(guards), "same": bool(same), "nan": spread_nan}
    return {**where, "shift": case.shift, **found, "failed": failed}


def exact_transform(x: np.ndarray, signs: np.ndarray, block: int) -> np.ndarray:
    """The transform in float64."""
    y, width = x * signs, 1
    with np.errstate(invalid="ignore"):
        while width < block:
            pairs = y.reshape(len(x), -1, 2, width)
            y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
            width *= 2
    return y.reshape(len(x), -1) / np.sqrt(block)


def checks(library: Library) -> Iterator[dict[str, Any]]:
    for producer in PRODUCERS:
        for dtype in TYPES:
            shapes = CHECKS + (PLAIN_CHECKS if producer == "Plain" else ())
            for rows, k, block in shapes:
                if "Gelu" in producer and k > 8192:
                    continue  # numpy has no erf
                nan = rows > 1 and k > 5
                yield check(library, Case(producer, dtype, rows, k, block, nan=nan))
            yield check(library, Case(producer, dtype, 3, 4096, 4096, shift=1))
    for producer in ("Plain", "AddRMSNorm"):
        yield check(library, Case(producer, torch.float16, 2300, 4096, 4096))


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "hadamard_check.json").write_text(json.dumps(rows) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--library", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows, failures = [], 0
    for row in checks(Library(options.library)):
        rows.append(row)
        failures += row["failed"]
        if row["failed"]:
            print(row, flush=True)
        if len(rows) % 50 == 0 or row["failed"]:
            _write(options.output, rows)
    _write(options.output, rows)
    for producer in PRODUCERS:
        own = [row for row in rows if row["producer"] == producer]
        worst = {name: max(row[name] for row in own) for name in ("y", "z")}
        print(f"{producer}: {len(own)} checks, {sum(r['failed'] for r in own)} failed, worst of the bounds {worst}")
    print(f"{len(rows)} checks, {failures} failures", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
