"""Check and time every kernel that MixQLinear could run on a Hopper GPU.

    python3 benchmarks/kernels/mixq_sm90.py run --output DIR

needs PyTorch and the libraries of build_mixq_sm90.sh in carry/. Each family of kernels is checked in a process of its
own, with the library whose waits trap instead of hanging; the families that passed are then checked again and timed
beside torch fp16 and torch._int_mm. Results: DIR/mixq_sm90_check.json, DIR/mixq_sm90_time.json; a table comes last.
"""

import argparse
import ctypes
import itertools
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "carry/libmixq_sm90.so"
BOUNDED_LIBRARY = ROOT / "carry/libmixq_sm90_bounded.so"

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST_STEP = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
# Of the terms' magnitude, per float32 operation: rounding costs 2^-24, truncation in a tensor core up to 4 times that.
FLOAT32_ERROR = 2.0**-22
GUARD = 4096  # elements after y that must not change
COLD_BYTES = 200e6  # of weights, more than L2 holds
SAMPLES = 25
SAMPLE_SECONDS = 1e-3

SHAPES = [(4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672)]  # N, K
OTHER_SHAPES = [(6144, 4096), (11008, 4096), (4096, 11008), (4096, 14336)]
TOKENS = [1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
CAPACITY = 128
FAMILIES = {  # prefix of the names, and the largest M that its kernels are for
    "128x256": math.inf, "128x128": math.inf, "128x64": math.inf, "few16": 16, "few32": 32, "few64": 64, "mma": 16,
}  # fmt: skip


class Library:
    """The C functions of mixq_sm90.cu."""

    def __init__(self, path: Path):
        self.c = ctypes.CDLL(str(path))
        self.c.sm90_name.restype = self.c.sm90_status.restype = ctypes.c_char_p
        self.c.sm90_linear.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 9
        self.names = [self.c.sm90_name(i).decode() for i in range(self.c.sm90_variants())]

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


def quantize(values: torch.Tensor, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [R, K], 0 in `channels`, and scales float32 [R] of float32 `values` [R, K]."""
    kept = values.clone()
    kept[:, channels] = 0
    amax = kept.abs().amax(dim=1)
    inverse = torch.where(amax > 0, 127 / amax, torch.zeros_like(amax))
    return torch.round(kept * inverse[:, None]).to(torch.int8), amax / 127


def planted(m: int, n: int, k: int, capacity: int, dtype: torch.dtype, seed: int) -> tuple[dict, dict]:
    """Operands of a layer whose activations are 20 times larger in min(capacity, K) - 3 random channels."""
    torch.manual_seed(seed)
    channels = torch.randperm(k, device="cuda")[: max(1, min(capacity, k) - 3)].sort().values
    x = torch.randn(m, k, device="cuda") * (0.1 + torch.rand(m, 1, device="cuda"))
    x[:, channels] *= 20
    weight = torch.randn(n, k, device="cuda") / math.sqrt(k) * (0.1 + torch.rand(n, 1, device="cuda"))
    xq, sx = quantize(x, channels)
    wq, sw = quantize(weight, channels)
    xo, wo = (torch.zeros(rows, capacity, device="cuda", dtype=dtype) for rows in (m, n))
    xo[:, : len(channels)] = x[:, channels].to(dtype)
    wo[:, : len(channels)] = weight[:, channels].to(dtype)
    bias = torch.randn(n, device="cuda").to(dtype)
    return {"xq": xq, "sx": sx, "xo": xo}, {"wq": wq, "sw": sw, "wo": wo, "bias": bias}


def reference(x: dict, w: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """y in float64 (the integer sums are exact in it) and the sum of its terms' magnitudes, both [M, N]."""
    sums = x["xq"].double() @ w["wq"].double().T
    codes = x["sx"].double()[:, None] * w["sw"].double() * sums
    bias = w["bias"].double()
    y = codes + x["xo"].double() @ w["wo"].double().T + bias
    return y, codes.abs() + x["xo"].double().abs() @ w["wo"].double().abs().T + bias.abs()


def run_guarded(library: Library, name: str, x: dict, w: dict) -> torch.Tensor:
    """y from a poisoned buffer; fails if an element was left unwritten or the guard after y was touched."""
    m, n, dtype = x["xq"].shape[0], w["wq"].shape[0], w["wo"].dtype
    buffer = torch.full((m * n + GUARD,), float("nan"), device="cuda", dtype=dtype)
    library.linear(name, x, w, buffer[: m * n].view(m, n))
    torch.cuda.synchronize()
    if not buffer[m * n :].isnan().all():
        raise AssertionError("wrote past the end of y")
    return buffer[: m * n].view(m, n)


def bound(exact: torch.Tensor, magnitude: torch.Tensor, w: dict) -> torch.Tensor:
    """What rounding to T, and a conversion, two scalings, C/16 additions and a bias in float32, may change."""
    capacity, dtype = w["wo"].shape[1], w["wo"].dtype
    return UNIT_ROUNDOFF[dtype] * exact.abs() + (4 + capacity / 16) * FLOAT32_ERROR * magnitude + SMALLEST_STEP[dtype]


def excess(y: torch.Tensor, x: dict, w: dict) -> float:
    """Largest error of y as a multiple of its bound; NaN counts as infinite."""
    exact, magnitude = reference(x, w)
    return ((y.double() - exact).abs() / bound(exact, magnitude, w)).nan_to_num(nan=math.inf).max().item()


def max_tokens(name: str) -> float:
    return next(most for family, most in FAMILIES.items() if name.startswith(family))


def check_shapes(name: str, few: bool) -> list[tuple[int, int, int, int]]:
    """(M, N, K, C): every tail of the tiles, rings shorter and longer than the stages, and several tiles per block.

    A `few` of them where a sanitizer makes all too slow.
    """
    most = max_tokens(name)
    tokens = (1, 63, 129, 300) if most == math.inf else (1, int(most) // 2 - 1, int(most))
    if few:
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


def check(library: Library, names: list[str], few: bool) -> dict:
    """All shapes in both types against the reference, twice for bitwise equality."""
    worst = 0.0
    for name, (type_name, dtype) in itertools.product(names, TYPES.items()):
        for seed, (m, n, k, capacity) in enumerate(check_shapes(name, few)):
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


def describe(y: torch.Tensor, x: dict, w: dict) -> str:
    """Which rows, columns and values of y are wrong, and whether one of its two products alone explains them."""
    exact, magnitude = reference(x, w)
    allowed = bound(exact, magnitude, w)
    wrong = ~((y.double() - exact).abs() <= allowed)
    rows, columns = wrong.any(1).nonzero().flatten().tolist(), wrong.any(0).nonzero().flatten().tolist()
    parts = {
        "without outliers": exact - x["xo"].double() @ w["wo"].double().T,
        "outliers and bias only": x["xo"].double() @ w["wo"].double().T + w["bias"].double(),
        "without bias": exact - w["bias"].double(),
    }
    loose = 4 * allowed + 1e-3
    alike = [label for label, part in parts.items() if ((y.double() - part).abs() <= loose).double().mean() > 0.9]
    r, c = wrong.nonzero()[0].tolist()
    return (
        f"{int(wrong.sum())} of {wrong.numel()} wrong, {int(y.isnan().sum())} NaN; rows {rows[:12]}..{rows[-1]} "
        f"({len(rows)}), columns {columns[:12]}..{columns[-1]} ({len(columns)}); y[{r},{c}]={y[r, c].item():.6g} "
        f"not {exact[r, c].item():.6g}; looks like: {alike}"
    )


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
    if name.startswith(("few16", "mma")):
        return m <= 16
    if name.startswith("few"):
        return max_tokens(name) / 2 < m <= max_tokens(name) or (m == 128 and name.startswith("few64"))
    if name.startswith("128x64"):
        return 16 <= m <= 512
    return m >= 128


def time_all(library: Library, names: list[str], save) -> list[dict]:
    results: list[dict] = []
    for (n, k), m in itertools.product(SHAPES + OTHER_SHAPES, TOKENS):
        layer = Layer(m, n, k)
        row = {"M": m, "N": n, "K": k, "C": CAPACITY, "peers": {}, "us": {}, "spread": {}}
        if (n, k) in SHAPES or m <= 64:
            row["peers"] = layer.time_peers()
        for name in names:
            if is_sensible(name, m):
                layer.check(library, name)
                row["us"][name], row["spread"][name] = time_graph(layer.launches(library, name), layer.seconds)
        results.append(row)
        save(results)
        print(json.dumps(row), flush=True)
        del layer
        torch.cuda.empty_cache()
    return results


def run(output: Path, limit: float) -> int:
    output.mkdir(parents=True, exist_ok=True)
    verdicts = []
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        for verdict in pool.map(lambda family: in_process(["check", "--family", family], family, limit), FAMILIES):
            verdicts.append(verdict)
            print(json.dumps(verdict), flush=True)
            (output / "mixq_sm90_check.json").write_text(json.dumps(verdicts, indent=1))
    passed = [family for family, verdict in zip(FAMILIES, verdicts, strict=True) if verdict["passed"]]
    if passed:
        timed = in_process(["time", "--output", str(output), "--family", *passed], "time", limit * 2)
        if not timed["passed"]:
            print(json.dumps(timed), flush=True)
        print_table(output)
    print("passed:", " ".join(passed) or "none", "| failed:", len(verdicts) - len(passed))
    return 0 if len(passed) == len(verdicts) else 1


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
    path = output / "mixq_sm90_time.json"
    if not path.exists():
        return
    saved = json.loads(path.read_text())
    print(saved["gpu"], "torch", saved["torch"], "CUDA", saved["cuda"])
    print("N K M | fp16 int_mm | floor of W | each kernel | best: TOPS, x fp16, x int_mm")
    for row in saved["rows"]:
        best = min(row["us"].values())
        peers = [row["peers"].get(peer, math.nan) for peer in ("torch_fp16", "torch_int_mm")]
        us = " ".join(f"{name}={value:.1f}" for name, value in row["us"].items())
        weights = row["N"] * row["K"]
        print(
            f"{row['N']} {row['K']} {row['M']} | {peers[0]:.1f} {peers[1]:.1f} | {weights / 3e6:.1f} | {us} | "
            f"{2e-6 * row['M'] * weights / best:.0f} {peers[0] / best:.2f} {peers[1] / best:.2f}"
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
    parser.add_argument("--few", action="store_true", help="check only three shapes, for a sanitizer")
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
        verdict = check(library, names, args.few)
        print(json.dumps(verdict))
        return 0 if verdict["passed"] else 1
    path = args.output / "mixq_sm90_time.json"
    saved = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    time_all(library, names, lambda rows: path.write_text(json.dumps(saved | {"rows": rows}, indent=1)))
    print(json.dumps({"name": "time", "passed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
