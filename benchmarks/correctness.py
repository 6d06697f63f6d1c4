"""Hold every kernel to its numpy evaluator on a GPU, through the C API and through the TensorRT plugins.

    python3 benchmarks/correctness.py --library LIB --host HOST_V3 --json FILE [--quick]
    python3 benchmarks/correctness.py --write-cases FOLDER      only write the reduced cases for compute-sanitizer

Outputs are poisoned and guarded before each run, every run is made twice and must give the same bits, and inputs hold
planted outliers, NaN, Inf and zero rows. Exit code 1 if anything failed.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import v3_cases
from mixq_cases import EPSILON, LinearCase, QuantizeCase, numerics, row_error

from graphopt.bench.capi import PRODUCERS, Library
from graphopt.bench.record import environment
from graphopt.numerics.packing import packed_bytes

ROWS = (0, 1, 3, 16, 17, 128, 300, 1000)
COLS = (64, 576, 1536, 4096, 4100, 11008)
COLUMNS_OUT = (8, 64, 576, 1001, 4096)
CAPACITIES = (16, 64, 128)
MANY_ROWS = 65536
FOUR_BITS = ("MixQLinearW4A8", "MixQLinearW4A4")
GROUPS = (32, 64, 128, 256, 1 << 20)
#: erf of the evaluator is a Python loop.
SLOW_EVALUATORS = ("MixQGelu", "MixQGatedGelu", "MixQGeGLU")
SLOW_ELEMENTS = 400_000
GUARD, POISON = 256, 0xA5
#: Activation types by name.
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TORCH = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float16): torch.float16,
    np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int32): torch.int32,
}
#: What runs at a time.
WORKERS = max(2, (os.cpu_count() or 2) - 2)


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    return _TORCH[np.dtype(dtype)]


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return next(n for n, t in _TORCH.items() if t == dtype)


def rng_for(case: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


class Output:
    """A poisoned device tensor followed by guard bytes; ``offset`` elements make it start off a 16-byte boundary."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> None:
        size = torch.empty((), dtype=dtype).element_size()
        self._start = offset * size
        self._bytes = int(np.prod(shape)) * size
        self._raw = torch.full((self._start + self._bytes + GUARD,), POISON, dtype=torch.uint8, device="cuda")
        self.tensor = self._raw[self._start : self._start + self._bytes].view(dtype).view(shape)

    def read(self) -> np.ndarray:
        """Contents as numpy.

        Raises:
            AssertionError: the guard was written.
        """
        raw = self._raw.cpu().numpy()
        end = self._start + self._bytes
        if (raw[: self._start] != POISON).any() or (raw[end:] != POISON).any():
            raise AssertionError("written outside the output")
        dtype = numpy_dtype(self.tensor.dtype)
        return raw[self._start : end].copy().view(dtype).reshape(tuple(self.tensor.shape))


def upload(array: np.ndarray, offset: int = 0) -> torch.Tensor:
    """A device copy of ``array`` that starts ``offset`` elements after a 16-byte boundary."""
    dtype = torch_dtype(array.dtype)
    if array.size == 0:
        return torch.empty(array.shape, dtype=dtype, device="cuda")
    start = offset * array.itemsize
    raw = np.zeros(start + array.nbytes, np.uint8)
    raw[start:] = np.ascontiguousarray(array).view(np.uint8).ravel()
    return torch.from_numpy(raw).cuda()[start:].view(dtype).view(array.shape)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True))


@functools.cache
def opened(path: Path) -> Library:
    """The library at ``path``, once a process."""
    return Library(path)


def check(path: Path, case: QuantizeCase | LinearCase, offset: int = 0) -> float:
    """Return the worst row error of what the library at ``path`` makes of ``case``.

    Raises:
        AssertionError: as `check_quantize` and `check_linear`.
    """
    run = check_quantize if isinstance(case, QuantizeCase) else check_linear
    return run(opened(path), case, offset)


def check_quantize(lib: Library, case: QuantizeCase, offset: int) -> float:
    """Return the worst row error of y.

    Raises:
        AssertionError: anything else than y's rounding differs from the evaluator.
    """
    inputs = case.inputs(rng_for(case))
    want, want_sum = case.produced(inputs)
    t = TYPES[case.dtype]
    m, k, c = case.rows, case.cols, case.capacity
    packed = packed_bytes(k)

    def run(emit: bool) -> dict[str, np.ndarray]:
        device = {name: upload(value, offset if name == "x" else 0) for name, value in inputs.items()}
        outputs = {
            **({"xq": Output((m, k), torch.int8)} if case.bits == 8 else {"xq4": Output((m, packed), torch.int8)}),
            "sx": Output((m, 1), torch.float32),
            "xo": Output((m, c), t),
            **({"y": Output((m, k), t)} if emit else {}),
            **({"sum": Output((m, k), t)} if emit and case.adds else {}),
        }
        x, idx = device.pop("x"), device.pop("idx")
        lib.quantize(case.producer, x, idx, {n: o.tensor for n, o in outputs.items()}, epsilon=EPSILON, **device)
        torch.cuda.synchronize()
        return {name: output.read() for name, output in outputs.items()}

    got, again, lean = run(True), run(True), run(False)
    assert all(same_bits(got[n], again[n]) for n in got), "two runs differ"
    assert all(same_bits(got[n], lean[n]) for n in lean), "emitting y changed the codes"
    for name, value in case.quantized(got["y"], inputs["idx"]).items():
        assert equal(got[name], value), f"{name} is not that of the kernel's own y"
    if case.adds:
        assert equal(got["sum"], want_sum), "the sum is not exact"
    if case.producer == "MixQQuantize":
        assert equal(got["y"], inputs["x"]), "y is not x"
    return row_error(got["y"], want)


def check_linear(lib: Library, case: LinearCase, offset: int) -> float:
    """Return the worst row error.

    Raises:
        AssertionError: two runs differ or something was written outside y.
    """
    operands = case.inputs(rng_for(case))
    moved = ("xq", "xq4", "wo", "residual")
    device = {name: upload(value, offset if name in moved else 0) for name, value in operands.items()}
    runs = []
    for _ in range(2):
        y = Output((case.m, case.n), TYPES[case.dtype], offset)
        call_linear(lib, case, device, y.tensor)
        torch.cuda.synchronize()
        runs.append(y.read())
    assert same_bits(*runs), "two runs differ"
    return row_error(runs[0], case.expected(operands))


def call_linear(lib: Library, case: LinearCase, operands: dict[str, torch.Tensor], y: torch.Tensor) -> None:
    if case.kind == "MixQLinear":
        lib.linear(**operands, y=y)
    elif case.kind == "MixQLinearW4A8":
        lib.linear_w4a8(**operands, y=y, group=case.group)
    else:
        lib.linear_w4a4(**operands, y=y, group=case.group)


def quantize_cases(quick: bool) -> Iterator[QuantizeCase]:
    capacities = itertools.cycle(CAPACITIES)
    rows = (0, 3, 17, 300) if quick else ROWS
    for dtype, producer, k, m in itertools.product(TYPES, PRODUCERS, COLS, rows):
        if producer in SLOW_EVALUATORS and m * k > SLOW_ELEMENTS:
            m = SLOW_ELEMENTS // k
        yield QuantizeCase(producer, dtype, m, k, next(capacities), special=True)
    # Rows of every kernel's limits: one warp, one block, long rows, and rows read again.
    for dtype, producer in itertools.product(TYPES, ("MixQQuantize", "MixQAddLayerNorm", "MixQGatedSilu")):
        for k in (1, 7, 8, 512, 1024, 1032, 8192, 16384, 16392, 28672, 32768, 40000):
            yield QuantizeCase(producer, dtype, 9, k, 32, special=k > 16)
            yield QuantizeCase(producer, dtype, 9, k, 32, special=k > 16, bits=4)
    for dtype, producer in itertools.product(TYPES, PRODUCERS):  # few rows of many threads, and many
        for m, k in ((0, 64), (9, 48), (9, 4096), (5, 100), (300, 1024)):
            yield QuantizeCase(producer, dtype, m, k, 32, special=True, bits=4)
    for producer in ("MixQQuantize", "MixQRMSNorm", "MixQAddLayerNorm", "MixQSwiGLU"):
        yield QuantizeCase(producer, "float16", MANY_ROWS, 64, 16, special=True)
        for m, k, capacity in ((9, 64, 64), (9, 100, 112), (300, 2048, 2048)):
            yield QuantizeCase(producer, "float16", m, k, capacity, nothing_left=True)
    # Rows enough for blocks to read one and two of them ahead.
    for dtype, producer in itertools.product(TYPES, PRODUCERS):
        if producer not in SLOW_EVALUATORS:
            longest = 16384 if dtype == "float32" else 32768
            for m, k in ((300, longest), (700, longest // 4)):
                yield QuantizeCase(producer, dtype, m, k, 128, special=True)


def linear_cases(quick: bool) -> Iterator[LinearCase]:
    capacities = itertools.cycle(CAPACITIES)
    rows = (0, 3, 17, 300) if quick else ROWS
    for dtype, k, n, m in itertools.product(TYPES, COLS, COLUMNS_OUT, rows):
        yield LinearCase(dtype, m, n, k, next(capacities), special=True)
    for dtype in TYPES:  # enough blocks for the large tiles, ragged edges, one K tile, one row
        for m, n, k in ((1024, 2176, 64), (3072, 1408, 80), (2100, 4104, 272), (1, 28672, 48), (9, 32, 16), (40, 1, 1)):
            yield LinearCase(dtype, m, n, k, 48, special=True)
    # Few tokens, each tile, ragged edges; groups of every kind; only the slow kernel takes 32.
    rng = np.random.default_rng(4)
    for k, n, m in itertools.product(COLS, COLUMNS_OUT, (*rows, 12, 30, 40, 100)):
        dtype, op, group = str(rng.choice(list(TYPES))), str(rng.choice(FOUR_BITS)), int(rng.choice(GROUPS))
        yield LinearCase(dtype, m, n, k, next(capacities), True, op, group)
    for op, dtype in itertools.product(FOUR_BITS, TYPES):
        for m, n, k in ((3072, 2176, 128), (2100, 4104, 272), (9000, 64, 96), (1, 28672, 48), (9, 32, 16), (40, 1, 1)):
            yield LinearCase(dtype, m, n, k, 48, True, op, 64)
    for op in ("MixQLinear", "MixQLinearAdd", *FOUR_BITS):
        yield LinearCase("float16", MANY_ROWS, 40, 64, 16, True, op, 64)
    # A residual, in every kernel.
    sizes = [
        *((0, 8, 64), (1, 4100, 1536), (12, 4096, 576), (40, 1, 1), (9, 1001, 100), (30, 72, 160), (100, 72, 1024)),
        *((100, 2176, 2048), (128, 4096, 1024), (300, 4104, 272), (1024, 2176, 64), (3072, 1408, 80)),
    ]
    for op, dtype, (m, n, k) in itertools.product(("MixQLinear", *FOUR_BITS), TYPES, sizes):
        yield LinearCase(dtype, m, n, k, 48, True, f"{op}Add", 64)


class Tally:
    """Worst errors and failures per op and type."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], dict[str, object]] = defaultdict(
            lambda: {"cases": 0, "worst_row_error": 0.0, "failures": []}
        )

    def add(self, op: str, dtype: str, name: str, error: float | None, reason: str | None) -> None:
        entry = self.entries[op, dtype]
        entry["cases"] += 1
        tolerance = numerics.ROW_TOLERANCE[dtype]
        if reason is None and not error <= tolerance:
            reason = f"row error {error:.2e} is above {tolerance:.0e}"
        if reason is None:
            entry["worst_row_error"] = max(entry["worst_row_error"], error)
        else:
            entry["failures"].append(f"{name}: {reason}")

    def report(self, route: str) -> list[dict[str, object]]:
        return [
            {"route": route, "op": op, "dtype": dtype, "tolerance": numerics.ROW_TOLERANCE[dtype], **entry}
            for (op, dtype), entry in sorted(self.entries.items())
        ]


def attempt(check: Callable[[], float]) -> tuple[float | None, str | None]:
    """Return what ``check`` returns, or why it failed."""
    try:
        return check(), None
    except Exception as e:  # whatever it is, it is this case's failure, and the others still run
        return None, f"{type(e).__name__}: {e}".splitlines()[0]


def processes() -> concurrent.futures.Executor:
    """A pool of processes: the evaluators take most of the time."""
    context = multiprocessing.get_context("spawn")  # a fork cannot use the CUDA of its parent
    return concurrent.futures.ProcessPoolExecutor(WORKERS, context)


def sweep(
    tasks: list[tuple[str, str, str, Callable[[], float]]], pool: concurrent.futures.Executor | None = None
) -> Tally:
    """Attempt all checks, in ``pool`` or by threads."""
    tally = Tally()
    with pool or concurrent.futures.ThreadPoolExecutor(WORKERS) as workers:
        results = workers.map(attempt, [task[3] for task in tasks], chunksize=4)
        for (op, dtype, name, _), (error, reason) in zip(tasks, results, strict=True):
            tally.add(op, dtype, name, error, reason)
    return tally


def through_capi(path: Path, quick: bool) -> list[dict[str, object]]:
    cases: list[tuple[QuantizeCase | LinearCase, int]] = [
        (case, 0) for case in itertools.chain(quantize_cases(quick), linear_cases(quick))
    ]
    for dtype in TYPES:  # pointers that no 16-byte access may use
        for producer, bits in itertools.product(PRODUCERS, (8, 4)):
            cases.append((QuantizeCase(producer, dtype, 9, 576, 32, special=True, bits=bits), 1))
        for m, op in itertools.product((5, 70), ("MixQLinear", "MixQLinearAdd", *FOUR_BITS, "MixQLinearW4A8Add")):
            cases.append((LinearCase(dtype, m, 72, 160, 32, True, op), 1))
    tasks = [
        (case.op, case.dtype, f"{case}{' misaligned' if offset else ''}", functools.partial(check, path, case, offset))
        for case, offset in cases
    ]
    return sweep(tasks, processes()).report("capi")


def chain_error(lib: Library) -> float:
    """||y - x W^T|| / ||x W^T|| of quantize + linear, int8 error included: the two kernels fit together."""
    rng = np.random.default_rng(7)
    case = QuantizeCase("MixQQuantize", "float16", 200, 1024, 64)
    inputs = case.inputs(rng)
    w = (rng.standard_normal((512, 1024)) * 0.05).astype(np.float16)
    wq, sw, wo = numerics.quantize_weight(w, inputs["idx"])
    outputs = {
        "xq": Output((200, 1024), torch.int8),
        "sx": Output((200, 1), torch.float32),
        "xo": Output((200, 64), torch.float16),
    }
    tensors = {name: output.tensor for name, output in outputs.items()}
    y = Output((200, 512), torch.float16)
    lib.quantize(case.producer, upload(inputs["x"]), upload(inputs["idx"]), tensors)
    bias = torch.zeros(512, dtype=torch.float16, device="cuda")
    lib.linear(*tensors.values(), upload(wq), upload(sw), upload(wo), bias, y.tensor)
    torch.cuda.synchronize()
    want = inputs["x"].astype(np.float64) @ w.T.astype(np.float64)
    return float(np.linalg.norm(y.read() - want) / np.linalg.norm(want))


def plugin_cases(quick: bool) -> list[QuantizeCase | LinearCase]:
    """A few shapes for every op and type: each kernel once, small enough for compute-sanitizer."""
    shapes = [(0, 64), (9, 64), (5, 100)] if quick else [(0, 64), (9, 64), (33, 1024), (9, 4096), (9, 20480), (5, 100)]
    cases: list[QuantizeCase | LinearCase] = [
        QuantizeCase(producer, dtype, m, k, 32, special=True, bits=bits)
        for dtype, producer, (m, k), bits in itertools.product(TYPES, PRODUCERS, shapes, (8, 4))
    ]
    # One kernel of each kind that reads rows ahead.
    ahead = ("MixQQuantize", "MixQAddLayerNorm", "MixQGatedSilu")
    cases += [QuantizeCase(producer, "float16", 300, 32768, 32) for producer in ahead]
    linear = [(0, 8, 64), (1, 40, 64), (12, 4300, 80), (40, 72, 160), (1024, 2176, 64), (3072, 1408, 64), (20, 33, 100)]
    cases += [LinearCase(dtype, *shape, 32, special=True) for dtype in TYPES for shape in linear]
    sizes = [(0, 8, 64), (1, 40, 64), (12, 43, 80), (30, 72, 160), (20, 33, 100), (40, 33, 160), (40, 72, 160)]
    cases += [LinearCase(t, *size, 48, True, op, 128) for t, op, size in itertools.product(TYPES, FOUR_BITS, sizes)]
    # What an H100 or H200 takes the other wgmma kernels for.
    sizes = [
        *((100, 72, 1024), (40, 16896, 128), (40, 8448, 2048), (100, 72, 128)),
        *((100, 2176, 2048), (256, 4352, 128), (100, 4352, 4096), (300, 8448, 128)),
    ]
    cases += [LinearCase("float16", *size, 48, True, "MixQLinearW4A8", 128) for size in sizes]
    sizes = [(1, 40, 64), (12, 43, 80), (20, 33, 100), (40, 72, 160), (100, 2176, 128), (300, 8448, 128)]
    ops = [f"{op}Add" for op in ("MixQLinear", *FOUR_BITS)]
    cases += [LinearCase(t, *size, 48, True, op, 128) for t, op, size in itertools.product(TYPES, ops, sizes)]
    return cases


def through_plugins(library: Path, host: Path, cases: Sequence[v3_cases.Case]) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written = v3_cases.write(folder, cases, rng_for)
        printed = v3_cases.run(host, library, folder)
        tasks = [
            (case.op, case.dtype, str(case), functools.partial(compare_outputs, folder, name, case, printed))
            for name, case in written.items()
        ]
        return sweep(tasks, processes()).report("plugin_v3")


def compare_outputs(folder: Path, name: str, case: v3_cases.Case, printed: str) -> float:
    """Return the worst row error of what host_v3 wrote for ``case``.

    Raises:
        AssertionError: as `v3_cases.compare`.
    """
    return v3_cases.compare(case, v3_cases.read(folder, name, printed), rng_for(case))


def publish(lib: Library, entries: Sequence[dict[str, object]], path: Path, **more: object) -> list[str]:
    """Write the report and print a line for each entry; return what failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(lib), **more, "ops": entries}, indent=1) + "\n")
    for entry in entries:
        print(
            f"{entry['route']:9} {entry['op']:20} {entry['dtype']:9} {entry['cases']:4} cases, "
            f"worst {entry['worst_row_error']:.2e} of {entry['tolerance']:.0e}, {len(entry['failures'])} failed"
        )
    return [reason for entry in entries for reason in entry["failures"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--host", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer rows; about a quarter of the time")
    parser.add_argument("--write-cases", type=Path)
    options = parser.parse_args()
    if options.write_cases:
        options.write_cases.mkdir(parents=True, exist_ok=True)
        v3_cases.write(options.write_cases, plugin_cases(options.quick), rng_for)
        return
    lib = Library(options.library)
    start = time.time()
    entries = through_capi(options.library, options.quick)
    entries += through_plugins(options.library, options.host, plugin_cases(options.quick))
    chain = chain_error(lib)
    failures = publish(lib, entries, options.json, seconds=round(time.time() - start, 1), chain_error=chain)
    print(f"quantize + linear against the unquantized product: {chain:.4f}")
    print("\n".join(failures[:40]))
    if failures or not chain < 0.02:
        sys.exit(1)


if __name__ == "__main__":
    main()
