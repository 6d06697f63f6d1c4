"""Hold every kernel to its numpy evaluator on a GPU, through the C API and through the TensorRT plugins.

    python3 benchmarks/correctness.py --library LIB --host HOST_V3 --json FILE [--quick]
    python3 benchmarks/correctness.py --write-cases FOLDER      only write the reduced cases for compute-sanitizer

Outputs are poisoned and guarded before each run, every run is made twice and must give the same bits, and inputs hold
planted outliers, NaN, Inf and zero rows. Exit code 1 if anything failed. Told to stop early (SIGTERM), it reports what
it has seen and exits with 3.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import ml_dtypes
import numpy as np
import torch
import v3_cases
from correctness_cases import linear_cases, misaligned_cases, plugin_cases, quantize_cases
from mixq_cases import EPSILON, LinearCase, QuantizeCase, numerics, row_error

from graphopt.bench import mixq_linear
from graphopt.bench.capi import Library
from graphopt.bench.mixq_linear import exact_linear
from graphopt.bench.record import environment
from graphopt.numerics.packing import packed_bytes

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
#: Python runs one thread of a process at a time, the GPU the kernels of one process: so a few of both.
PROCESSES = max(1, min(4, (os.cpu_count() or 2) // 4))
THREADS = max(2, (os.cpu_count() or 2) // PROCESSES - 1)
#: What a process takes at a time: few enough to report often when stopped.
SLICE = 150
#: Products of a linear above which the GPU computes the reference, in float64: numpy takes too long.
NUMPY_PRODUCTS = 1 << 28


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


def check(path: Path, case: QuantizeCase | LinearCase, offset: int) -> float:
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
    return row_error(got["y"], want, case.slack(inputs))


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
    return row_error(runs[0], expected(case, operands, device))


def expected(case: LinearCase, operands: dict[str, np.ndarray], device: dict[str, torch.Tensor]) -> np.ndarray:
    """y of the numpy evaluator, or where that would take long the same from the GPU's float64 units."""
    if case.m * case.n * case.k <= NUMPY_PRODUCTS:
        return case.expected(operands)
    exact = exact_linear(device, case.group)
    return exact.float().to(TYPES[case.dtype]).double().cpu().numpy()


def call_linear(lib: Library, case: LinearCase, operands: dict[str, torch.Tensor], y: torch.Tensor) -> None:
    if case.kind == "MixQLinear":
        lib.linear(**operands, y=y)
    elif case.kind == "MixQLinearW4A8":
        lib.linear_w4a8(**operands, y=y, group=case.group)
    else:
        lib.linear_w4a4(**operands, y=y, group=case.group)


class Tally:
    """Worst errors and failures per route, op and type."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], dict[str, object]] = defaultdict(
            lambda: {"cases": 0, "worst_row_error": 0.0, "failures": []}
        )

    def add(self, key: tuple[str, str, str], name: str, error: float | None, reason: str | None) -> None:
        entry = self.entries[key]
        entry["cases"] += 1
        tolerance = numerics.ROW_TOLERANCE[key[2]]
        if reason is None and not error <= tolerance:
            reason = f"row error {error:.2e} is above {tolerance:.0e}"
        if reason is None:
            entry["worst_row_error"] = max(entry["worst_row_error"], error)
        else:
            entry["failures"].append(f"{name}: {reason}")

    def report(self) -> list[dict[str, object]]:
        return [
            {"route": route, "op": op, "dtype": dtype, "tolerance": numerics.ROW_TOLERANCE[dtype], **entry}
            for (route, op, dtype), entry in sorted(self.entries.items())
        ]


def attempt(check: Callable[[], float]) -> tuple[float | None, str | None]:
    """Return what ``check`` returns, or why it failed."""
    try:
        return check(), None
    except Exception as e:  # whatever it is, it is this case's failure, and the others still run
        return None, f"{type(e).__name__}: {e}".splitlines()[0]


def attempt_all(checks: Sequence[Callable[[], float]]) -> list[tuple[float | None, str | None]]:
    """Attempt checks by threads."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as workers:
        return list(workers.map(attempt, checks))


def sweep(tally: Tally, route: str, tasks: Sequence[tuple[v3_cases.Case, str, Callable[[], float]]]) -> None:
    """Attempt the check of every case."""
    outcomes = attempt_all([task[2] for task in tasks])
    for (case, name, _), (error, reason) in zip(tasks, outcomes, strict=True):
        tally.add((route, case.op, case.dtype), name, error, reason)


@contextlib.contextmanager
def through_capi(tally: Tally, path: Path, quick: bool) -> Iterator[None]:
    """Check all calls by processes of their own, while the caller does something else."""
    cases: list[tuple[QuantizeCase | LinearCase, int]] = [
        (case, 0) for case in itertools.chain(quantize_cases(quick), linear_cases(quick))
    ]
    cases += [(case, 1) for case in misaligned_cases()]
    context = multiprocessing.get_context("spawn")  # a fork cannot use the CUDA of its parent
    with concurrent.futures.ProcessPoolExecutor(PROCESSES, context) as processes:
        slices = [cases[start :: -(-len(cases) // SLICE)] for start in range(-(-len(cases) // SLICE))]
        checks = {
            processes.submit(attempt_all, [functools.partial(check, path, *case) for case in some]): some
            for some in slices
        }
        yield
        for done in concurrent.futures.as_completed(checks):
            for (case, offset), (error, reason) in zip(checks[done], done.result(), strict=True):
                tally.add(("capi", case.op, case.dtype), f"{case}{' misaligned' * offset}", error, reason)


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


def check_chain(lib: Library, case: mixq_linear.LinearCase) -> float:
    """Run linears one behind the other, each on what the one before wrote: kernels that start early must wait for it.

    Raises:
        AssertionError: the outputs are not those of kernels that are waited for one by one.
    """
    rounds = 12
    operands = mixq_linear.Operands(case, lib, copies=4)
    first = operands.x.clone()

    def run(wait: Callable[[], None]) -> torch.Tensor:
        operands.x.copy_(first)
        for i in range(rounds):
            operands.quantize(lib)
            wait()
            operands.gemm(lib, operands.weights[i % 4], y=operands.x)
            wait()
        torch.cuda.synchronize()
        return operands.x.clone()

    want = run(torch.cuda.synchronize)
    assert bool(want.isfinite().all()), "the outputs are not finite"
    assert all(torch.equal(want, run(lambda: None)) for _ in range(4)), "a kernel did not wait for the one before"
    return 0.0


def through_chains(tally: Tally, lib: Library) -> None:
    for scheme, m in itertools.product(mixq_linear.SCHEMES, (1, 16, 100, 600)):
        case = mixq_linear.LinearCase(m, 4096, 4096, scheme=scheme)
        tally.add(
            ("chain", f"mixq-{scheme}", case.dtype), str(case), *attempt(functools.partial(check_chain, lib, case))
        )


def through_plugins(tally: Tally, library: Path, host: Path, cases: Sequence[v3_cases.Case]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written = v3_cases.write(folder, cases, rng_for)
        printed = v3_cases.run(host, library, folder)
        tasks = [
            (case, str(case), functools.partial(compare_outputs, folder, name, case, printed))
            for name, case in written.items()
        ]
        sweep(tally, "plugin_v3", tasks)


def compare_outputs(folder: Path, name: str, case: v3_cases.Case, printed: str) -> float:
    """Return the worst row error of what host_v3 wrote for ``case``.

    Raises:
        AssertionError: as `v3_cases.compare`.
    """
    return v3_cases.compare(case, v3_cases.read(folder, name, printed), rng_for(case))


def publish(lib: Library, tally: Tally, path: Path, **more: object) -> list[str]:
    """Write the report and print a line for each entry; return what failed."""
    entries = tally.report()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(lib), **more, "ops": entries}, indent=1) + "\n")
    for entry in entries:
        print(
            f"{entry['route']:9} {entry['op']:20} {entry['dtype']:9} {entry['cases']:4} cases, "
            f"worst {entry['worst_row_error']:.2e} of {entry['tolerance']:.0e}, {len(entry['failures'])} failed"
        )
    failures = [reason for entry in entries for reason in entry["failures"]]
    print(f"{sum(entry['cases'] for entry in entries)} cases, {len(failures)} failed")
    print("\n".join(failures[:40]), flush=True)
    return failures


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
    lib, tally, start = Library(options.library), Tally(), time.time()

    def stop(*_: object) -> NoReturn:
        publish(lib, tally, options.json, seconds=round(time.time() - start, 1), complete=False)
        os._exit(3)  # threads may be waiting for the GPU

    signal.signal(signal.SIGTERM, stop)
    with through_capi(tally, options.library, options.quick):
        through_plugins(tally, options.library, options.host, plugin_cases(options.quick))
        through_chains(tally, lib)
    chain = chain_error(lib)
    seconds = round(time.time() - start, 1)
    failures = publish(lib, tally, options.json, seconds=seconds, complete=True, chain_error=chain)
    print(f"quantize + linear against the unquantized product: {chain:.4f}; {seconds} s")
    if failures or not chain < 0.02:
        sys.exit(1)


if __name__ == "__main__":
    main()
