"""First timings of the MixQ kernels on one GPU, beside torch in the same run.

    python3 benchmarks/mixq_first.py --library LIB --json FILE

CUDA graph replays between events, median of SAMPLES; buffers rotate so that nothing is found in L2. Quantizing ops are
rated by the bytes that must move over the copy bandwidth measured in the same run.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import capi
import torch
from correctness import environment

SAMPLES = 25
BEYOND_L2 = 200 << 20  # bytes that buffers of one measurement must cover together
CAPACITY = 128
LINEAR_SIZES = ((4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672))
LINEAR_ROWS = (1, 16, 128, 512, 2048, 4096)
QUANTIZE_COLS = (4096, 8192, 11008, 28672)
QUANTIZE_ROWS = (16, 4096)


def median_us(calls: Sequence[Callable[[], None]], repeat: int) -> tuple[float, float]:
    """Microseconds per call of ``calls``, made in turn, ``repeat`` in all, and the spread (max - min) / median."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(repeat):
            calls[i % len(calls)]()
    times = []
    for sample in range(SAMPLES + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if sample >= 3:  # the first replays warm the clocks
            times.append(start.elapsed_time(end) * 1e3 / repeat)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def copies_for(bytes_each: int) -> int:
    return max(2, min(64, math.ceil(BEYOND_L2 / bytes_each)))


def repeats_for(copies: int, estimate_us: float) -> int:
    """At least every copy once, and about 2 ms of work."""
    return max(copies, min(256, math.ceil(2000 / estimate_us)))


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device-to-device copy of 1 GiB."""
    a = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    us, _ = median_us([lambda: b.copy_(a)], 4)
    return 2 * a.numel() / (us * 1e-6)


def indices(cols: int) -> torch.Tensor:
    return torch.randperm(cols, device="cuda")[:CAPACITY].sort().values.int()


def quantize_calls(lib: capi.Library, producer: str, m: int, k: int, copies: int) -> list[Callable[[], None]]:
    """The same launch over ``copies`` sets of buffers."""
    dtype, idx = torch.float16, indices(k)
    names = [*(["gamma"] if "Norm" in producer else []), *(["beta"] if "LayerNorm" in producer else [])]
    weights = {name: torch.randn(k, device="cuda", dtype=dtype) for name in names}

    def call() -> Callable[[], None]:
        x = torch.randn(m, k, device="cuda", dtype=dtype)
        other = {"other": torch.randn_like(x)} if "Add" in producer or "Gated" in producer else {}
        outputs = {
            "xq": torch.empty(m, k, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(m, 1, device="cuda"),
            "xo": torch.empty(m, CAPACITY, dtype=dtype, device="cuda"),
            **({"sum": torch.empty_like(x)} if "Add" in producer else {}),
        }
        return lambda: lib.quantize(producer, x, idx, outputs, epsilon=1e-5, **other, **weights)

    return [call() for _ in range(copies)]


def quantize_entries(lib: capi.Library, bandwidth: float) -> Iterator[dict[str, object]]:
    for producer, k, m in itertools.product(capi.PRODUCERS, QUANTIZE_COLS, QUANTIZE_ROWS):
        adds = "Add" in producer
        inputs = 1 + (adds or "Gated" in producer)
        moved = m * k * (2 * inputs + 1 + 2 * adds) + m * (4 + 2 * CAPACITY)
        floor = moved / bandwidth * 1e6
        calls = quantize_calls(lib, producer, m, k, copies_for(moved))
        us, spread = median_us(calls, repeats_for(len(calls), floor + 2))
        yield {
            "suite": "mixq_quantize",
            "case": f"{producer} fp16 M={m} K={k} C={CAPACITY}",
            "scheme": "mixq-w8a8",
            "M": m,
            "K": k,
            "us": round(us, 2),
            "spread": round(spread, 3),
            "floor_us": round(floor, 2),
            "bytes": moved,
            "share_of_copy": round(floor / us, 3),
        }


def linear_entries(lib: capi.Library, bandwidth: float) -> Iterator[dict[str, object]]:
    dtype = torch.float16
    for n, k in LINEAR_SIZES:
        for m in LINEAR_ROWS:
            copies = copies_for(n * k) if m <= 128 else 2
            ours, fp16, int8 = [], [], []
            for _ in range(copies):
                xq = torch.randint(-127, 128, (m, k), dtype=torch.int8, device="cuda")
                wq = torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")
                operands = (
                    xq,
                    torch.rand(m, 1, device="cuda") * 0.01,
                    torch.randn(m, CAPACITY, dtype=dtype, device="cuda"),
                    wq,
                    torch.rand(n, device="cuda") * 0.001,
                    torch.randn(n, CAPACITY, dtype=dtype, device="cuda"),
                    torch.randn(n, dtype=dtype, device="cuda"),
                    torch.empty(m, n, dtype=dtype, device="cuda"),
                )
                ours.append(lambda o=operands: lib.linear(*o))
                if m > 16:
                    int8.append(lambda a=xq, b=wq: torch._int_mm(a, b.t()))
            floor = (n * k + m * k + 2 * m * n + 2 * CAPACITY * (m + n)) / bandwidth * 1e6
            us, spread = median_us(ours, repeats_for(copies, floor + m * n * k / 4e8))
            peers = {}
            if int8:
                peers["torch_int_mm"] = round(median_us(int8, repeats_for(copies, us))[0], 2)
            del ours, int8, operands, xq, wq
            for _ in range(max(2, copies // 2)):
                x = torch.randn(m, k, dtype=dtype, device="cuda")
                w = torch.randn(n, k, dtype=dtype, device="cuda")
                y = torch.empty(m, n, dtype=dtype, device="cuda")
                fp16.append(lambda x=x, w=w, y=y: torch.mm(x, w.t(), out=y))
            peers["torch_fp16"] = round(median_us(fp16, repeats_for(len(fp16), us))[0], 2)
            del fp16, x, w, y
            yield {
                "suite": "mixq_linear",
                "case": f"MixQLinear fp16 M={m} N={n} K={k} C={CAPACITY}",
                "scheme": "mixq-w8a8",
                "M": m,
                "N": n,
                "K": k,
                "us": round(us, 2),
                "spread": round(spread, 3),
                "peers": peers,
                "floor_us": round(floor, 2),
                "ops": 2 * m * n * (k + CAPACITY),
                "tops": round(2 * m * n * k / us * 1e-6, 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    lib = capi.Library(options.library)
    bandwidth = copy_bandwidth()
    common = {**environment(lib), "copy_tb_s": round(bandwidth * 1e-12, 3)}
    print(f"{common['gpu']}: copies move {common['copy_tb_s']} TB/s")
    entries = []
    for entry in itertools.chain(linear_entries(lib, bandwidth), quantize_entries(lib, bandwidth)):
        entries.append({**entry, **common})
        options.json.write_text(json.dumps(entries, indent=1) + "\n")
        beside = entry.get("peers") or f"{entry['share_of_copy']:.0%} of copy bandwidth"
        print(f"{entry['case']:46} {entry['us']:9.2f} us  floor {entry['floor_us']:8.2f}  {beside}", flush=True)


if __name__ == "__main__":
    main()
