"""Check and time every kernel that MixQLinear could run on a Hopper GPU.

    python3 benchmarks/kernels/mixq_sm90.py run --output DIR

needs PyTorch and the libraries of build_mixq_sm90.sh in carry/. Each family of kernels is checked in a process of its
own, with the library whose waits trap instead of hanging; if all pass, they are checked again and timed beside torch
fp16 and torch._int_mm. Results: DIR/mixq_sm90_check.json and DIR/mixq_linear.json, a record for each size of the kernel
that the library picks, with the times of all; a table comes last.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from mixq_reference import bound, describe, excess, planted, reference

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "carry/libmixq_sm90.so"
BOUNDED_LIBRARY = ROOT / "carry/libmixq_sm90_bounded.so"

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
GUARD = 4096  # elements after y that must not change
RECORDS = "mixq_linear.json"
COLD_BYTES = 200e6  # of weights, more than L2 holds
SAMPLES = 25
SAMPLE_SECONDS = 1e-3

SHAPES = [(4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672)]  # N, K
OTHER_SHAPES = [(6144, 4096), (11008, 4096), (4096, 11008), (4096, 14336)]
TOKENS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
CAPACITY = 128
FAMILIES = {"small": 16, "128x64": math.inf, "128x128": math.inf, "128x256": math.inf}  # names' start: the largest M


class Library:
    """The C functions of mixq_sm90.cu."""

    def __init__(self, path: Path):
        self.c = ctypes.CDLL(str(path))
        self.c.sm90_name.restype = self.c.sm90_status.restype = self.c.sm90_pick.restype = ctypes.c_char_p
        self.c.sm90_pick.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_int]
        self.c.sm90_linear.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 9
        self.names = [self.c.sm90_name(i).decode() for i in range(self.c.sm90_variants())]

    def pick(self, m: int, n: int, k: int, capacity: int) -> str:
        """The kernel that the library runs on this device."""
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        return self.c.sm90_pick(m, n, k, capacity, multiprocessors).decode()

    def linear(self, name: str, x: dict, w: dict, y: torch.Tensor) -> None:
        """Enqueue y [M, N] on the current stream; operands as named by LinearParams."""
        (m, k), (n, capacity) = x["xq"].shape, w["wo"].shape
        operands = [x["xq"], x["sx"], x["xo"], w["wq"], w["sw"], w["wo"], w["bias"], y]
        status = self.c.sm90_linear(
            self.names.index(name), int(y.dtype == torch.bfloat16), m, n, k, capacity,
            *[t.data_ptr() for t in operands], torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"{name} M={m} N={n} K={k} C={capacity}: {self.c.sm90_status(status).decode()}")


def run_guarded(library: Library, name: str, x: dict, w: dict) -> torch.Tensor:
    """y from a poisoned buffer; fails if an element was left unwritten or the guard after y was touched."""
    m, n, dtype = x["xq"].shape[0], w["wq"].shape[0], w["wo"].dtype
    buffer = torch.full((m * n + GUARD,), float("nan"), device="cuda", dtype=dtype)
    library.linear(name, x, w, buffer[: m * n].view(m, n))
    torch.cuda.synchronize()
    if not buffer[m * n :].isnan().all():
        raise AssertionError("wrote past the end of y")
    return buffer[: m * n].view(m, n)


def max_tokens(name: str) -> float:
    return next(most for family, most in FAMILIES.items() if name.startswith(family))


def check_shapes(name: str, quick: bool) -> list[tuple[int, int, int, int]]:
    """(M, N, K, C): every tail of the tiles, rings shorter and longer than the stages, and several tiles per block.

    Three of them if `quick`, for a sanitizer that makes all too slow.
    """
    most = max_tokens(name)
    tokens = (1, 63, 129, 300) if most == math.inf else (1, int(most) // 2 - 1, int(most))
    if quick:
        return [(tokens[0], 72, 144, 16), (tokens[-2], 264, 1040, 128), (tokens[-1], 520, 2048, 112)]
    longer = [
        (1, 4096, 4096, 128), (3, 1000, 4096, 48), (16, 8192, 1024, 64), (17, 264, 11008, 112), (64, 256, 128, 64),
        (128, 256, 256, 256), (127, 1016, 2048, 16), (257, 776, 4096, 128), (511, 2056, 640, 144),
        (1000, 4096, 1536, 128), (2048, 4096, 512, 128), (4096, 8192, 576, 64), (1537, 11008, 400, 32),
        (2050, 8200, 272, 512),
    ]  # fmt: skip
    tails = itertools.product(tokens, (8, 72, 264), (16, 144, 1040), (16, 128))
    return list(tails) + [(m if m <= most else int(most), *rest) for m, *rest in longer]


def check_nonfinite(library: Library, name: str, dtype: torch.dtype) -> None:
    """A NaN or infinite row of X makes its row of Y non-finite and changes no other."""
    m = int(min(200, max_tokens(name)))
    x, w = planted(m, 328, 640, 64, dtype, seed=7)
    clean = run_guarded(library, name, x, w)
    nan, infinite, outlier = rows = [m // 40, m * 2 // 5, m * 2 // 3]
    x["sx"][nan], x["sx"][infinite] = float("nan"), float("inf")
    x["xq"][[nan, infinite]] = 0
    x["xo"][outlier, 2] = float("inf")
    y = run_guarded(library, name, x, w)
    touched = torch.zeros(m, dtype=torch.bool, device="cuda")
    touched[rows] = True
    if y[rows].isfinite().any():
        raise AssertionError("a non-finite row of X gave finite values")
    if not torch.equal(y[~touched], clean[~touched]):
        raise AssertionError("a non-finite row of X changed another row")


def check(library: Library, names: list[str], quick: bool) -> dict:
    """All shapes in both types against the reference, twice for bitwise equality."""
    worst = 0.0
    for name, (type_name, dtype) in itertools.product(names, TYPES.items()):
        for seed, (m, n, k, capacity) in enumerate(check_shapes(name, quick)):
            case = f"{name} {type_name} M={m} N={n} K={k} C={capacity}"
            x, w = planted(m, n, k, capacity, dtype, seed)
            y = run_guarded(library, name, x, w)
            found = excess(y, x, w)
            if not found <= 1:
                return {"name": names[0], "passed": False, "case": case, "excess": found, "where": describe(y, x, w)}
            if not torch.equal(y, run_guarded(library, name, x, w)):
                return {"name": names[0], "passed": False, "case": case, "where": "two runs differ"}
            worst = max(worst, found)
        check_nonfinite(library, name, dtype)
    return {"name": names[0], "passed": True, "excess": worst}


def time_graph(launches: list, seconds_each: float) -> tuple[float, float]:
    """Median and interquartile range, in microseconds, of one launch among `launches` replayed in a CUDA graph."""
    rounds = max(1, math.ceil(SAMPLE_SECONDS / (seconds_each * len(launches))))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for launch in launches:
            launch()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for launch in launches * rounds:
            launch()
    samples = []
    for i in range(SAMPLES + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            samples.append(start.elapsed_time(end) * 1e3 / (len(launches) * rounds))
    quarters = statistics.quantiles(samples, n=4)
    return statistics.median(samples), quarters[2] - quarters[0]


class Layer:
    """Operands of one timed case: random codes of standard deviation 32, and weights enough to overflow L2."""

    def __init__(self, m: int, n: int, k: int, capacity: int = CAPACITY):
        torch.manual_seed(m + n + k)
        self.m, self.n, self.k = m, n, k
        self.seconds = max(2 * m * n * k / 1.5e15, n * k / 3e12)
        self.x = self._codes(m, capacity, "x")
        self.ws = [self._codes(n, capacity, "w") for _ in range(max(1, math.ceil(COLD_BYTES / (n * k))))]
        self.y = torch.empty(m, n, device="cuda", dtype=torch.float16)
        # At most 256 evenly spaced rows, the last one included, are compared with the reference.
        self.rows = torch.linspace(0, m - 1, min(m, 256), device="cuda").round().long()
        self.exact, magnitude = reference({key: t[self.rows] for key, t in self.x.items()}, self.ws[0])
        self.allowed = bound(self.exact, magnitude, self.ws[0])

    def _codes(self, rows: int, capacity: int, letter: str) -> dict:
        codes = torch.randn(rows, self.k, device="cuda", dtype=torch.float16).mul_(32).clamp_(-127, 127).to(torch.int8)
        scale = (1 + torch.rand(rows, device="cuda")) / (32 * math.sqrt(self.k) if letter == "w" else 32)
        part = torch.randn(rows, capacity, device="cuda", dtype=torch.float16)
        operands = {letter + "q": codes, "s" + letter: scale, letter + "o": part}
        if letter == "w":
            part.mul_(1 / math.sqrt(self.k))
            operands["bias"] = torch.randn(rows, device="cuda", dtype=torch.float16)
        return operands

    def launches(self, library: Library, name: str) -> list:
        return [lambda w=w: library.linear(name, self.x, w, self.y) for w in self.ws]

    def check(self, library: Library, name: str) -> None:
        """Compare the timed buffers with the reference."""
        self.y.fill_(float("nan"))
        library.linear(name, self.x, self.ws[0], self.y)
        found = ((self.y[self.rows].double() - self.exact).abs() / self.allowed).nan_to_num(nan=math.inf).max().item()
        if self.y.isnan().any() or not found <= 1:
            raise AssertionError(f"{name} is wrong at M={self.m} N={self.n} K={self.k}: {found:.3g} times the bound")

    def time_peers(self) -> dict[str, float]:
        """torch fp16 and torch._int_mm, microseconds."""
        x = torch.randn(self.m, self.k, device="cuda", dtype=torch.float16)
        copies = max(1, math.ceil(COLD_BYTES / (2 * self.n * self.k)))
        ws = [torch.randn(self.n, self.k, device="cuda", dtype=torch.float16) for _ in range(copies)]
        peers = {}
        half = [lambda w=w: torch.matmul(x, w.T, out=self.y) for w in ws]
        peers["torch_fp16"], peers["torch_fp16_spread"] = time_graph(half, 2 * self.seconds)
        if self.m > 16:
            sums = torch.empty(self.m, self.n, device="cuda", dtype=torch.int32)
            codes = [lambda w=w: torch._int_mm(self.x["xq"], w["wq"].T, out=sums) for w in self.ws]
            peers["torch_int_mm"], peers["torch_int_mm_spread"] = time_graph(codes, self.seconds)
        return peers


def is_sensible(name: str, m: int) -> bool:
    """Leave out kernels that can only lose."""
    if name == "small":
        return m <= 16
    if name.startswith("128x64"):
        return m <= 512
    return m >= 128 or name.startswith("128x128")


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device-to-device copy of 1 GiB."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us, _ = time_graph([lambda: target.copy_(source)], 2 * source.numel() / 3e12)
    return 2 * source.numel() / (us * 1e-6)


def environment() -> dict[str, str | None]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "commit": os.environ.get("GRAPHOPT_COMMIT", ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def time_layer(library: Library, names: list[str], m: int, n: int, k: int) -> dict:
    """Every sensible kernel among `names`, and the peers, at one size."""
    layer = Layer(m, n, k)
    peers = layer.time_peers() if (n, k) in SHAPES or m <= 64 else {}
    timed = {}
    for name in names:
        if is_sensible(name, m):
            layer.check(library, name)
            timed[name] = time_graph(layer.launches(library, name), layer.seconds)
    picked = library.pick(m, n, k, CAPACITY)
    moved = n * k + m * k + 2 * CAPACITY * (m + n) + 4 * (m + n) + 2 * n + 2 * m * n
    return {
        "suite": "mixq_linear",
        "case": f"MixQLinear fp16 M={m} N={n} K={k} C={CAPACITY}",
        "scheme": "mixq-w8a8",
        **{"M": m, "N": n, "K": k, "C": CAPACITY},
        "kernel": picked,
        "us": round(timed[picked][0], 2),
        "spread_us": round(timed[picked][1], 3),
        "peers": {name: round(us, 2) for name, us in peers.items() if not name.endswith("spread")},
        "variants": {name: round(us, 2) for name, (us, _) in timed.items()},
        "bytes": moved,
        "ops": 2 * m * n * (k + CAPACITY),
    }


def time_all(library: Library, names: list[str], path: Path) -> None:
    bandwidth = copy_bandwidth()
    common = {"floor_tb_s": round(bandwidth * 1e-12, 3), **environment()}
    records: list[dict] = []
    for (n, k), m in itertools.product(SHAPES + OTHER_SHAPES, TOKENS):
        record = time_layer(library, names, m, n, k)
        records.append({**record, "floor_us": round(record["bytes"] / bandwidth * 1e6, 2), **common})
        path.write_text(json.dumps(records, indent=1) + "\n")
        print(json.dumps(records[-1]), flush=True)
        torch.cuda.empty_cache()


def run(output: Path, limit: float) -> int:
    output.mkdir(parents=True, exist_ok=True)
    verdicts = []
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        for verdict in pool.map(lambda family: in_process(["check", "--family", family], family, limit), FAMILIES):
            verdicts.append(verdict)
            print(json.dumps(verdict), flush=True)
            (output / "mixq_sm90_check.json").write_text(json.dumps(verdicts, indent=1))
    if not all(verdict["passed"] for verdict in verdicts):
        return 1
    timed = in_process(["time", "--output", str(output)], "time", limit * 2)
    print_table(output)
    if not timed["passed"]:
        print(json.dumps(timed), flush=True)
    return 0 if timed["passed"] else 1


def in_process(arguments: list[str], name: str, limit: float) -> dict:
    """The JSON that the last line of a child holds; a crash or a time-out is a failed verdict."""
    try:
        child = subprocess.run(
            [sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        return {"name": name, "passed": False, "case": f"no answer in {limit:.0f} s", "where": str(error.stdout)[-600:]}
    lines = child.stdout.strip().splitlines()
    if not (lines and lines[-1].startswith('{"name"')):
        return {"name": name, "passed": False, "case": f"exit {child.returncode}", "where": child.stderr[-900:]}
    return json.loads(lines[-1])


def print_table(output: Path) -> None:
    path = output / RECORDS
    if not path.exists():
        return
    records = json.loads(path.read_text())
    print(records[0]["gpu"], "torch", records[0]["torch"], "CUDA", records[0]["cuda"])
    print("N K M | fp16 int_mm | floor | each kernel | picked: TOPS, x fp16, x int_mm, of the best")
    for row in records:
        us = row["us"]
        peers = [row["peers"].get(peer, math.nan) for peer in ("torch_fp16", "torch_int_mm")]
        each = " ".join(f"{name}={value:.1f}" for name, value in row["variants"].items())
        print(
            f"{row['N']} {row['K']} {row['M']} | {peers[0]:.1f} {peers[1]:.1f} | {row['floor_us']:.1f} | {each} | "
            f"{row['kernel']}: {1e-6 * row['ops'] / us:.0f} {peers[0] / us:.2f} {peers[1] / us:.2f} "
            f"{us / min(row['variants'].values()):.3f}"
        )


def profile(name: str, m: int, n: int, k: int) -> None:
    """A few launches for a profiler to look at."""
    library, layer = Library(LIBRARY), Layer(m, n, k)
    for launch in layer.launches(library, name) * 3:
        launch()
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "check", "time", "profile"])
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder of the results")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), help="how the kernels' names start")
    parser.add_argument("--quick", action="store_true", help="check only three shapes, for a sanitizer")
    parser.add_argument("--kernel", default="128x256-2x1", help="the kernel to profile")
    parser.add_argument("--sizes", default="2048,8192,8192", help="M,N,K to profile")
    parser.add_argument("--limit", type=float, default=60, help="seconds that the check of one family may take")
    args = parser.parse_args()
    if args.action == "run":
        return run(args.output, args.limit)
    if args.action == "profile":
        profile(args.kernel, *map(int, args.sizes.split(",")))
        return 0
    library = Library(BOUNDED_LIBRARY if args.action == "check" else LIBRARY)
    names = [name for name in library.names if name.startswith(tuple(args.family))]
    if args.action == "check":
        verdict = check(library, names, args.quick)
        print(json.dumps(verdict))
        return 0 if verdict["passed"] else 1
    time_all(library, names, args.output / RECORDS)
    print(json.dumps({"name": "time", "passed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
