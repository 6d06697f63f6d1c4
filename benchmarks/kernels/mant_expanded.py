"""Check and time M-ANT's linears for many tokens by every way that the Hopper kernels offer, and their parts.

    python3 benchmarks/kernels/mant_expanded.py check --library LIB --output FILE
    python3 benchmarks/kernels/mant_expanded.py time --library LIB --output FILE [--seconds S]

needs PyTorch and what build_mant_expanded.sh makes. Ways: "folded" decodes where it multiplies, "expanded" writes slabs
of W out first. Records are written as they come; times leave out the quantizing op.
"""

import argparse
import ctypes
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from mant_cases import MOST_HALF_TOKENS, MantCase, mant_types, numerics  # noqa: E402
from mixq_cases import row_error  # noqa: E402

WORKS = ("folded", "expanded", "prepare", "expand")
DECODERS = ("MANTLinear", "MANTLinearW4A8", "MANTLinearInt8")
SCHEMES = ("w4a16", "w4a8", "int8")
TYPES = {"float16": 1, "bfloat16": 2, "int8": 3}
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}
GUARD = 4096  # elements after y that must not change
STEP = 256  # rows of W; a slab is a multiple, or all
GROUP = 64
COLD_BYTES = 200e6  # of weights, more than L2 holds
MEGABYTES = (32, 64, 16, 128)
SHAPES = ((8192, 8192), (28672, 8192), (8192, 28672), (4096, 4096))  # N, K


class Library:
    """The C functions of mant_expanded.cu."""

    def __init__(self, path: str) -> None:
        self.c = ctypes.CDLL(path)
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self.c.mx_status.restype = ctypes.c_char_p
        self.c.mx_slab_rows.restype = long
        self.c.mx_slab_rows.argtypes = [number, long, long, long, number]
        self.c.mx_linear.argtypes = [number, long, number, number] + [long] * 4 + [pointer] * 10
        self.c.mx_gemm.argtypes = [number] * 3 + [long] * 3 + [pointer] * 6 + [long, pointer]

    def _require(self, status: int, what: str) -> None:
        if status:
            raise RuntimeError(f"{what}: {self.c.mx_status(status).decode()}")

    def linear(
        self, work: str, rows: int, op: str, given: dict, y: torch.Tensor, group: int, space: torch.Tensor
    ) -> None:
        """Enqueue `work` for y [M, N]; operands as named by MantCase."""
        x = given["x"] if op == "MANTLinear" else given["xq"]
        names = ("sx", "codes", "types", "scale", "table", "bias")
        status = self.c.mx_linear(
            WORKS.index(work), rows, DECODERS.index(op), TYPES[str(y.dtype)[6:]], x.shape[0], y.shape[1], x.shape[1],
            group, x.data_ptr(), *(None if given.get(n) is None else given[n].data_ptr() for n in names), y.data_ptr(),
            space.data_ptr(), torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        self._require(status, f"{work} {op} {tuple(x.shape)} {tuple(y.shape)} rows {rows}")

    def gemm(self, tile: int, given: dict, y: torch.Tensor) -> None:
        """Enqueue y [M, N], whose rows may be apart; x, w, bias, and sx and sw or None."""
        x, w = given["x"], given["w"]
        pointers = [None if given.get(name) is None else given[name].data_ptr() for name in ("sx", "sw")]
        status = self.c.mx_gemm(
            tile, TYPES[str(x.dtype)[6:]], TYPES[str(y.dtype)[6:]], x.shape[0], w.shape[0], x.shape[1], x.data_ptr(),
            w.data_ptr(), *pointers, given["bias"].data_ptr(), y.data_ptr(), y.stride(0),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        self._require(status, f"gemm {tile} {tuple(x.shape)} {tuple(w.shape)}")


def workspace(op: str, m: int, n: int, k: int, rows: int, group: int) -> torch.Tensor:
    """Room for as many slabs as take turns and what is prepared."""
    size = (1 if op == "MANTLinearInt8" else 2) * (2 if rows < n else 1)
    prepared = {"MANTLinear": 0, "MANTLinearW4A8": 2 * m * k, "MANTLinearInt8": -(-k // group) * n * 16 + 4 * n}[op]
    return torch.empty(rows * k * size + prepared + 4096, dtype=torch.uint8, device="cuda")


def upload(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def guarded(m: int, n: int, dtype: torch.dtype, run: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """What `run` makes of a poisoned y; twice, for the same bits.

    Raises:
        AssertionError: the guard was written, or two runs differ.
    """
    results = []
    for _ in range(2):
        buffer = torch.full((m * n + GUARD,), float("nan"), device="cuda", dtype=dtype)
        run(buffer[: m * n].view(m, n))
        torch.cuda.synchronize()
        assert buffer[m * n :].isnan().all(), "wrote past the end of y"
        results.append(buffer[: m * n].view(m, n))
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16)), "two runs differ"
    return results[0]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def linear_cases() -> Iterator[tuple[MantCase, list[int]]]:
    """Cases and rows of slabs: ragged ends, one slab, several, groups of all lengths, tables that do not mirror."""
    for op in DECODERS:
        yield MantCase(op, "float16", 1100, 1352, 528, 128), [512]
        yield MantCase(op, "float16", 2000, 1400, 272, special=False), [STEP]
        yield MantCase(op, "float16", 257, 2056, 4096, special=False), [1024]
    for op, dtype in itertools.product(("MANTLinear", "MANTLinearInt8"), TOLERANCE):
        yield MantCase(op, dtype, 140, 1000, 528, nf4=True), [1000, STEP]
    groups = itertools.cycle((64, 128, 1 << 13, 64))
    sizes = ((136, 400), (1000, 2064), (520, 1040), (2056, 272))
    for (n, k), m, op, dtype in itertools.product(sizes, (97, 130, 300), DECODERS, TOLERANCE):
        if op == "MANTLinearInt8":  # the reference's weights are halves for fewer tokens, which go by another kernel
            m = max(m, MOST_HALF_TOKENS + 1)
        yield MantCase(op, dtype, m, n, k, next(groups)), [n, *(STEP * s for s in (1, 2) if STEP * s < n)]


def written_weights(case: MantCase, given: dict) -> np.ndarray:
    """Numbers that a slab of all rows must hold."""
    weight = [given[name] for name in ("codes", "types", "scale")]
    if case.op == "MANTLinearInt8":
        return numerics.row_bytes(*weight, given["table"], case.k, group=case.group)[0]
    table = given["table"] if case.op == "MANTLinear" else mant_types.MANT.values.astype(np.float16)
    if case.op == "MANTLinear" and case.dtype == "bfloat16":
        table = table.astype(ml_dtypes.bfloat16)
    return numerics.row_halves(*weight, table, case.k, group=case.group)


def check_linear(lib: Library, case: MantCase, slabs: list[int], seed: int) -> Iterator[tuple[str, float]]:
    """Names of checks, and errors as a multiple of what is allowed."""
    given = case.inputs(np.random.default_rng(seed))
    want = case.expected(given)
    device = {name: upload(array) for name, array in given.items()}
    dtype = getattr(torch, case.dtype)
    space = workspace(case.op, case.m, case.n, case.k, max(slabs), case.group)
    for work, rows in itertools.product(("folded", "expanded"), slabs):
        if work == "folded" and rows != slabs[0]:
            continue
        space.fill_(0xA5)

        def run(y: torch.Tensor, work: str = work, rows: int = rows) -> None:
            lib.linear(work, rows, case.op, device, y, case.group, space)

        y = guarded(case.m, case.n, dtype, run)
        yield f"{work} {case} rows {rows}", row_error(as_numpy(y), want.astype(np.float32)) / TOLERANCE[case.dtype]
    if case.n not in slabs:
        return
    y = torch.empty(case.m, case.n, dtype=dtype, device="cuda")
    lib.linear("expand", case.n, case.op, device, y, case.group, space)
    numbers = written_weights(case, given)
    raw = space[: numbers.nbytes].cpu().numpy().view(numbers.dtype).reshape(numbers.shape)
    same = np.array_equal(raw.astype(np.float32), numbers.astype(np.float32), equal_nan=True)
    yield f"expand {case}", 0.0 if same else math.inf


def check_gemm(lib: Library, seed: int) -> Iterator[tuple[str, float]]:
    pairs = (("int8", "float16"), ("int8", "bfloat16"), ("float16", "float16"), ("float16", "bfloat16"))
    sizes = ((97, 72, 16), (300, 264, 1040), (130, 1000, 272), (1537, 2056, 400), (257, 4096, 4096))
    every = itertools.product((0, 128, 256), (*pairs, ("bfloat16", "bfloat16")), sizes, (False, True))
    for tile, (operands, dtype), (m, n, k), scaled in every:
        torch.manual_seed(seed := seed + 1)
        x, w = (torch.randn(rows, k, device="cuda") for rows in (m, n))
        if operands == "int8":
            x, w = (v.mul(40).clamp(-127, 127).round().to(torch.int8) for v in (x, w))
        else:
            x, w = (v.to(getattr(torch, operands)) for v in (x, w))
        scales = scaled or operands == "int8"  # sums of int8 are beyond float16
        t = getattr(torch, dtype)
        given = {"x": x, "w": w, "bias": torch.randn(n, device="cuda").to(t)}
        if scales:
            given["sx"] = torch.rand(m, device="cuda") / (40 * math.sqrt(k))
        if scaled:
            given["sw"] = torch.rand(n, device="cuda") + 0.5
        sums = x.double() @ w.double().T
        want = sums * given.get("sx", torch.ones(m, device="cuda")).double()[:, None]
        want = want * given.get("sw", torch.ones(n, device="cuda")).double() + given["bias"].double()
        wide = torch.full((m, n + 24), float("nan"), device="cuda", dtype=t)
        lib.gemm(tile, given, wide[:, 8 : n + 8])
        torch.cuda.synchronize()
        outside = torch.cat((wide[:, :8], wide[:, n + 8 :]), 1)
        error = row_error(as_numpy(wide[:, 8 : n + 8]), want.cpu().numpy()) / TOLERANCE[dtype]
        name = f"gemm tile {tile} {operands} {dtype} M={m} N={n} K={k} scaled {scaled}"
        yield name, error if outside.isnan().all() else math.inf


def check(lib: Library, output: Path, seconds: float) -> int:
    """Number of failures; those that time ran out for count as left out."""
    start, worst, failed, counts = time.time(), {}, [], {}
    sources = [check_gemm(lib, 100)]
    sources += [check_linear(lib, case, slabs, seed) for seed, (case, slabs) in enumerate(linear_cases())]
    left = 0

    def publish() -> None:
        report = {"checks": counts, "failed": len(failed), "left_out": left, "worst": worst, "failures": failed[:40]}
        output.write_text(json.dumps(report, indent=1) + "\n")

    for source in sources:
        if time.time() - start > seconds:
            left += 1
            continue
        try:
            for name, error in source:
                kind = " ".join(name.split(" M=")[0].split()[:2])
                counts[kind] = counts.get(kind, 0) + 1
                worst[kind] = max(worst.get(kind, 0), error)
                if not error <= 1:
                    failed.append(f"{name}: {error:.3g} times what is allowed")
                if time.time() - start > seconds:
                    left += 1
                    break
        except (AssertionError, RuntimeError) as error:
            failed.append(f"{source}: {error!r}")
        publish()
    publish()
    print(f"{sum(counts.values())} checks, {len(failed)} failed, {left} cases left out, {time.time() - start:.1f} s")
    print("\n".join(failed[:20]), flush=True)
    return len(failed)


def median_us(launches: list[Callable[[], None]], samples: int = 9) -> float:
    """Median microseconds of one launch among `launches` replayed in a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        launches[0]()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for launch in launches[:2]:
            launch()
        end.record()
    side.synchronize()
    each = max(1.0, start.elapsed_time(end) * 1e3 / len(launches[:2]))
    chosen = [launches[i % len(launches)] for i in range(max(2, min(48, math.ceil(1500 / each))))]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for launch in chosen:
            launch()
    times = []
    for i in range(samples + 1):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i:
            times.append(start.elapsed_time(end) * 1e3 / len(chosen))
    return round(statistics.median(times), 2)


def copies(size: float) -> int:
    """Of weights of `size` bytes that overflow L2."""
    return max(1, math.ceil(COLD_BYTES / size))


class Layer:
    """Operands of one timed size: random codes, types and scales, in copies that overflow L2."""

    def __init__(self, op: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
        torch.manual_seed(m + n + k)
        self.op, self.m, self.n, self.k = op, m, n, k
        x = {"x": torch.randn(m, k, device="cuda").to(dtype)}
        if op != "MANTLinear":
            x = {
                "xq": torch.randn(m, k, device="cuda", dtype=torch.float16).mul_(32).clamp_(-127, 127).to(torch.int8),
                "sx": torch.rand(m, 1, device="cuda") / 32,
            }
        tables = {"MANTLinear": mant_types.MANT.values.astype(np.float16), "MANTLinearW4A8": None}
        table = tables[op] if op in tables else mant_types.MANT.rounded().integers()
        table = None if table is None else upload(np.ascontiguousarray(table))
        self.given = []
        for _ in range(copies(n * k / 2)):
            weight = {
                "codes": torch.randint(-128, 128, (n, k // 2), dtype=torch.int8, device="cuda"),
                "types": torch.randint(-128, 128, (k // GROUP, -(-n // 32) * 16), dtype=torch.int8, device="cuda"),
                "scale": (torch.rand(k // GROUP, n, device="cuda") * k**-0.5 + 1e-3).half(),
                "table": table,
                "bias": torch.randn(n, device="cuda").to(dtype),
            }
            self.given.append(x | weight)
        self.y = torch.empty(m, n, dtype=dtype, device="cuda")
        self.space = workspace(op, m, n, k, self.rows(max(MEGABYTES)), GROUP)

    def rows(self, megabytes: int) -> int:
        """Of a slab of at most `megabytes`; at least a tile's."""
        size = 1 if self.op == "MANTLinearInt8" else 2
        return min(self.n, max(STEP, (megabytes << 20) // (self.k * size) // STEP * STEP))

    def time(self, lib: Library, work: str, rows: int) -> float:
        return median_us(
            [lambda g=g: lib.linear(work, rows, self.op, g, self.y, GROUP, self.space) for g in self.given]
        )

    def differs(self, lib: Library, work: str, rows: int) -> float:
        """From folded, as a norm."""
        ys = []
        for name in ("folded", work):
            self.y.fill_(float("nan"))
            lib.linear(name, rows, self.op, self.given[0], self.y, GROUP, self.space)
            ys.append(self.y.float())
        return ((ys[0] - ys[1]).norm() / ys[0].norm()).item()


def time_products(lib: Library, m: int, n: int, k: int) -> dict[str, float]:
    """The product alone in each tile, of 16 bits and of int8, and torch's."""
    torch.manual_seed(1)
    halves = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies(n * k * 2))]
    y, bias = (torch.zeros(*shape, device="cuda", dtype=torch.float16) for shape in ((m, n), (n,)))
    times = {"torch_fp16": median_us([lambda w=w: torch.matmul(halves, w.T, out=y) for w in weights])}

    def time_tiles(name: str, given: dict, ws: list[torch.Tensor]) -> None:
        for tile in (128, 256):
            calls = [lambda w=w, t=tile: lib.gemm(t, given | {"w": w}, y) for w in ws]
            times[f"{name}_{tile}"] = median_us(calls)

    time_tiles("float16", {"x": halves, "bias": bias}, weights)
    codes, *coded = (v.mul(32).clamp(-127, 127).to(torch.int8) for v in (halves, *weights))
    coded += [w.roll(1) for w in coded[: copies(n * k) - len(coded)]]
    sx, sw = (torch.full((rows,), 1e-3, device="cuda") for rows in (m, n))
    time_tiles("int8", {"x": codes, "bias": bias, "sx": sx, "sw": sw}, coded)
    return times


def time_all(lib: Library, output: Path, seconds: float) -> None:
    start, records = time.time(), []
    device = torch.cuda.get_device_properties(0)
    about = {"gpu": device.name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}

    def publish(record: dict) -> None:
        records.append({**record, **about})
        output.write_text(json.dumps(records, indent=1) + "\n")
        print(f"{time.time() - start:5.1f}", json.dumps(record), flush=True)

    sizes = [(m, *shape) for m in (2048, 4096, 512) for shape in SHAPES]
    half, brain = torch.float16, torch.bfloat16
    plan = [(half, op, size) for size in sizes for op in DECODERS] + [(brain, op, sizes[0]) for op in DECODERS]
    timed: set[tuple[int, int, int]] = set()
    for dtype, op, size in plan:
        if time.time() - start > seconds:
            print("no time for", dtype, op, size, flush=True)
            continue
        m, n, k = size
        if size not in timed:
            timed.add(size)
            publish({"case": "gemm", "M": m, "N": n, "K": k, "us": time_products(lib, m, n, k)})
        layer = Layer(op, dtype, m, n, k)
        first = ("folded",) if op == "MANTLinear" else ("folded", "prepare")
        us = {work: layer.time(lib, work, layer.rows(32)) for work in first}
        difference, seen = 0.0, set()
        for megabytes in MEGABYTES:
            rows = layer.rows(megabytes)
            if rows in seen:
                continue
            seen.add(rows)
            for work in ("expand", "expanded"):
                if work == "expand" and m != sizes[0][0]:
                    continue
                us[f"{work} {megabytes} MB"] = layer.time(lib, work, rows)
                if work != "expand":
                    difference = max(difference, layer.differs(lib, work, rows))
        picked = lib.c.mx_slab_rows(DECODERS.index(op), m, n, k, device.multi_processor_count)
        publish({
            "case": f"{SCHEMES[DECODERS.index(op)]} {str(dtype)[6:]}", "M": m, "N": n, "K": k, "us": us,
            "differs": difference, "picked_rows": picked,
        })  # fmt: skip
        del layer
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "time"))
    parser.add_argument("--library", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    lib = Library(str(options.library))
    if options.command == "check":
        sys.exit(bool(check(lib, options.output, options.seconds)))
    time_all(lib, options.output, options.seconds)


if __name__ == "__main__":
    main()
