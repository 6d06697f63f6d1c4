"""Check and time the kernels of MixQLinearW4A8.

    python3 benchmarks/kernels/mixq_w4a8.py --output DIR [--check-only] [--quick]

needs PyTorch and the libraries of build_mixq_w4a8.sh in carry/. Every kernel and the library's own choice are compared
with the exact result, in every type; the library whose waits trap instead of hanging goes first, with few shapes. Then
all kernels that suit a size are timed beside torch fp16 and torch int4 (tinygemm, groups of 128).
Results: DIR/mixq_w4a8_check.json and DIR/mixq_w4a8_time.json.
"""

import argparse
import ctypes
import functools
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mixq_reference import describe, excess, planted

CARRY = Path(__file__).resolve().parents[2] / "carry"
LIBRARY, BOUNDED_LIBRARY = CARRY / "libmixq_w4a8.so", CARRY / "libmixq_w4a8_bounded.so"
TYPES = (torch.float32, torch.float16, torch.bfloat16)
MMA = "mma"  # the family of kernels without wgmma
GUARD = 4096  # elements after y, at least, that must not change
MOST_RUNS, ALL_RUNS = 64, 10_000_000  # of one kernel on one case, and times elements of y
CODES_PER_VECTOR = 32
GROUP_SCALE_MAX = 18
#: The bound of mixq_reference is one of 16-bit types; float32 goes through three TF32 products.
FLOAT32_TOLERANCE = 1e-5

COLD_BYTES = 250e6  # of weights, more than L2 holds
SAMPLES = 21
SAMPLE_SECONDS = 1e-3
SHAPES = [(4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672)]  # N, K
TOKENS = [1, 8, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096]
CAPACITY, GROUP = 128, 128

CHECKS = [  # M, N, K, C, group
    *[(m, n, k, c, g) for m in (1, 7, 8, 9, 16, 17, 33, 64, 65, 130) for n, k, c, g in (
        (64, 128, 16, 64), (72, 160, 48, 128), (200, 1040, 128, 64), (1001, 2064, 64, 4096), (33, 48, 32, 64))],
    *[(m, n, k, c, g) for m in (3, 40, 300) for n, k, c, g in (
        (40, 16, 16, 16), (24, 100, 32, 64), (24, 96, 32, 32), (130, 777, 16, 6), (8, 1, 16, 2))],
    (16, 4096, 4096, 128, 128), (1, 8192, 8192, 128, 64), (8, 512, 28672, 128, 128), (300, 1536, 4096, 128, 64),
    (1030, 2184, 1024, 128, 128), (3000, 1400, 512, 80, 64), (2048, 8192, 640, 128, 128), (600, 4096, 1168, 48, 256),
]  # fmt: skip

QUICK_CHECKS = [  # for compute-sanitizer, and to see that no kernel hangs
    (9, 72, 160, 48, 128), (1, 33, 48, 32, 64), (40, 200, 1040, 128, 64), (3, 24, 100, 32, 64),
    (270, 136, 272, 16, 128),
]  # fmt: skip


class Library:
    """The C functions of mixq_w4a8.cu."""

    def __init__(self, path: Path):
        self.c = ctypes.CDLL(str(path))
        self.c.w4a8_name.restype = self.c.w4a8_status.restype = ctypes.c_char_p
        self.c.w4a8_linear.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 5 + [ctypes.c_void_p] * 10
        count = self.c.w4a8_variants()
        self.names = {self.c.w4a8_name(i).decode(): i for i in range(count)}
        self.range_m = {name: (self.c.w4a8_least_m(i), self.c.w4a8_most_m(i)) for name, i in self.names.items()}

    def linear(self, name: str, x: dict, w: dict, y: torch.Tensor) -> None:
        """Enqueue y [M, N]; ``name``: a kernel, or "auto" for the library's choice."""
        (m, k), (n, capacity) = x["xq"].shape, w["wo"].shape
        operands = [x["xq"], x["sx"], x["xo"], w["wq4"], w["sg"], w["sw"], w["wo"], w["bias"], y]
        status = self.c.w4a8_linear(
            self.names.get(name, -1), TYPES.index(y.dtype), m, n, k, capacity, w["group"],
            *[t.data_ptr() for t in operands], torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"{name} M={m} N={n} K={k} C={capacity}: {self.c.w4a8_status(status).decode()}")


def pack(codes: torch.Tensor) -> torch.Tensor:
    """graphopt.numerics.packing.pack_int4 on the GPU."""
    n, k = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -k % CODES_PER_VECTOR)).to(torch.int32) & 15
    halves = padded.view(n, -1, 2, CODES_PER_VECTOR // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).to(torch.uint8).view(torch.int8).reshape(n, -1)


def four_bit(w: dict, group: int) -> dict:
    """The weights of `planted` with 4-bit codes and random integer scales; "wq" becomes their product."""
    codes = (w["wq"].float() / GROUP_SCALE_MAX).round().to(torch.int8)
    n, k = codes.shape
    sg = torch.randint(1, GROUP_SCALE_MAX + 1, (math.ceil(k / group), n), device="cuda", dtype=torch.int8)
    wq = codes * sg.repeat_interleave(group, 0)[:k].T
    return {**w, "wq": wq, "wq4": pack(codes), "sg": sg, "sw": w["sw"] * 0.1, "group": group}


def run_guarded(library: Library, name: str, x: dict, w: dict) -> torch.Tensor:
    """y from poisoned buffers, many times without a pause; fails if a guard was touched or two runs differ."""
    m, n, dtype = x["xq"].shape[0], w["wq"].shape[0], w["wo"].dtype
    runs = max(2, min(MOST_RUNS, ALL_RUNS // (m * n)))
    buffers = torch.full((runs, math.ceil((m * n + GUARD) / GUARD) * GUARD), float("nan"), device="cuda", dtype=dtype)
    outputs = [buffer[: m * n].view(m, n) for buffer in buffers]
    for y in outputs:
        library.linear(name, x, w, y)
    torch.cuda.synchronize()
    if not buffers[:, m * n :].isnan().all():
        raise AssertionError("wrote past the end of y")
    different = (buffers[:, : m * n].view(torch.uint8) != outputs[0].view(-1).view(torch.uint8)).any(dim=1)
    if different.any():
        raise AssertionError(f"{int(different.sum())} of {runs} runs differ from the first")
    return outputs[0]


def error_of(y: torch.Tensor, x: dict, w: dict) -> float:
    """Error as a multiple of what is allowed."""
    if y.dtype != torch.float32:
        return excess(y, x, w)
    exact = x["xq"].double() @ w["wq"].double().T * x["sx"].double()[:, None] * w["sw"].double()
    exact += x["xo"].double() @ w["wo"].double().T + w["bias"].double()
    error = (y.double() - exact).norm(dim=1) / exact.norm(dim=1)
    return error.nan_to_num(nan=math.inf).max().item() / FLOAT32_TOLERANCE


def kernels_for(library: Library, family: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> list[str]:
    """The kernels of ``family`` that take M, N, K and the group; "auto", the library's choice, counts as MMA."""
    m, n, k, group = sizes
    names = [name for name in library.names if family_of(name) == family]
    chosen = ["auto"] if family == MMA else []
    if k % 16 or (group < k and (group < 64 or group & (group - 1))) or dtype == torch.float32:
        return chosen
    if family != MMA:
        return names if n % 8 == 0 else []
    if dtype == torch.bfloat16:
        return chosen
    return chosen + [name for name in names if name != "generic" or m * n * k <= 1e9]


def family_of(name: str) -> str:
    """Kernels that are checked in one process: a hang or a fault in it says nothing about the others."""
    wgmma = re.match(r"wgmma-\d+", name)
    return wgmma.group() if wgmma else MMA


def check(library: Library, family: str, cases: list[tuple[int, ...]]) -> list[dict]:
    rows = []
    for seed, (m, n, k, capacity, group) in enumerate(cases):
        for dtype in TYPES:
            x, w = planted(m, n, k, capacity, dtype, seed)
            w = four_bit(w, group)
            for name in kernels_for(library, family, (m, n, k, group), dtype):
                row = {"kernel": name, "dtype": str(dtype)[6:], "case": [m, n, k, capacity, group]}
                try:
                    y = run_guarded(library, name, x, w)
                    row["excess"] = error_of(y, x, w)
                    if not row["excess"] <= 1:
                        row["failure"] = describe(y, x, w) if dtype != torch.float32 else "too far"
                except (RuntimeError, AssertionError) as e:
                    row["failure"] = str(e)
                rows.append(row)
                if "failure" in row:
                    print(row, flush=True)
                    if "CUDA" in row["failure"] or "illegal" in row["failure"]:
                        return rows
    return rows


def median_us(calls: list[Callable[[], object]]) -> tuple[float, float]:
    """Microseconds of one of `calls`, made in turn in a CUDA graph, and the spread (max - min) / median."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        each = (time.perf_counter() - start) / len(calls)
    repeat = max(len(calls), min(200, math.ceil(SAMPLE_SECONDS / each)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(repeat):
            calls[i % len(calls)]()
    times = []
    for sample in range(SAMPLES + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if sample >= 3:
            times.append(begin.elapsed_time(end) * 1e3 / repeat)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def copies(weight_bytes: float) -> int:
    return max(2, min(64, math.ceil(COLD_BYTES / weight_bytes)))


def fp16_calls(m: int, n: int, k: int) -> list[Callable[[], object]]:
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies(2.0 * n * k))]
    return [functools.partial(torch.nn.functional.linear, x, w) for w in weights]


def int4_calls(m: int, n: int, k: int) -> list[Callable[[], object]]:
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    calls = []
    for _ in range(copies(0.5 * n * k)):
        codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.rand(k // GROUP, n, 2, device="cuda", dtype=torch.bfloat16) * 0.01
        calls.append(functools.partial(torch.ops.aten._weight_int4pack_mm, x, packed, GROUP, scales))
    return calls


def our_weights(n: int, k: int) -> dict:
    return {
        "wq4": torch.randint(-128, 128, (n, k // 2), device="cuda", dtype=torch.int8),
        "sg": torch.randint(1, 19, (k // GROUP, n), device="cuda", dtype=torch.int8),
        "sw": torch.rand(n, device="cuda") * 1e-3,
        "wo": torch.randn(n, CAPACITY, device="cuda", dtype=torch.float16),
        "bias": torch.randn(n, device="cuda", dtype=torch.float16),
        "group": GROUP,
    }


def timings(library: Library, broken: set[str]) -> Iterator[dict]:
    for n, k in SHAPES:
        weights = [our_weights(n, k) for _ in range(copies(0.5 * n * k))]
        for m in TOKENS:
            x = {
                "xq": torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8),
                "sx": torch.rand(m, device="cuda") * 0.01,
                "xo": torch.randn(m, CAPACITY, device="cuda", dtype=torch.float16),
            }
            y = torch.empty(m, n, device="cuda", dtype=torch.float16)
            row: dict = {"M": m, "N": n, "K": k, "C": CAPACITY, "group": GROUP, "us": {}, "spread": {}, "peers": {}}
            few = weights if m <= 128 else weights[:2]
            for name in [
                "auto",
                *(v for v, (least, most) in library.range_m.items() if least <= m <= most and v not in broken),
            ]:
                calls = [functools.partial(library.linear, name, x, w, y) for w in few]
                row["us"][name], row["spread"][name] = median_us(calls)
            row["peers"]["torch_fp16"], row["spread"]["torch_fp16"] = median_us(fp16_calls(m, n, k))
            if m <= 128:
                row["peers"]["torch_int4"], row["spread"]["torch_int4"] = median_us(int4_calls(m, n, k))
            yield row
            print(m, n, k, {a: round(b, 1) for a, b in (row["peers"] | row["us"]).items()}, flush=True)
        del weights
        torch.cuda.empty_cache()


def check_family(family: str, quick: bool, path: Path) -> None:
    """Check one family, first few shapes with waits that trap, and write the rows to ``path``."""
    rows = check(Library(BOUNDED_LIBRARY), family, QUICK_CHECKS)
    if not quick and not any("failure" in row for row in rows):
        rows += check(Library(LIBRARY), family, CHECKS)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def check_all(library: Library, options: argparse.Namespace) -> list[dict]:
    """The rows of all families, each checked by a process of its own."""
    families = {family_of(name): options.output / f"mixq_w4a8_{family_of(name)}.json" for name in library.names}
    for path in families.values():
        path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--output", str(options.output), *(["--quick"] if options.quick else [])]
    processes = [subprocess.Popen([*command, "--family", family]) for family in families]
    for process in processes:
        process.wait()
    rows = []
    for family, path in families.items():
        rows += json.loads(path.read_text()) if path.exists() else [{"kernel": family, "failure": "the process died"}]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="check only five shapes, for compute-sanitizer")
    parser.add_argument("--family", help="check these kernels only, in this process")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if options.family:
        check_family(options.family, options.quick, options.output / f"mixq_w4a8_{options.family}.json")
        return
    library = Library(LIBRARY)
    rows = check_all(library, options)
    (options.output / "mixq_w4a8_check.json").write_text(json.dumps(rows, indent=1) + "\n")
    broken = {row["kernel"] for row in rows if "failure" in row}
    worst = max((row.get("excess", 0) for row in rows), default=0)
    print(f"{len(rows)} checks, failed kernels: {sorted(broken)}, worst {worst:.2f} of the bound")
    print(f"{time.time() - start:.0f} s", flush=True)
    broken |= {name for name in library.names if family_of(name) in broken}
    if not options.check_only:
        about: dict = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
        about["rows"] = []
        for row in timings(library, broken):
            about["rows"].append(row)
            (options.output / "mixq_w4a8_time.json").write_text(json.dumps(about, indent=1) + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
