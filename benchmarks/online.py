"""Hold online outlier prediction to its numpy definition on a GPU, then time what it costs.

    python3 benchmarks/online.py --library LIB --json FILE

Every set, code and scale must be exactly that of the evaluator for the y that the kernel itself produced. Sequences of
calls remember; a CUDA graph replays them; two streams with two states do not disturb each other. Results are written as
they come. Exit code 1 if anything failed.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from mixq_cases import EPSILON, QuantizeCase, numerics

from graphopt.bench.capi import PRODUCERS
from graphopt.bench.capi_online import OnlineLibrary
from graphopt.bench.record import environment
from graphopt.numerics.packing import pack_int4

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIGMA_RMS = 5.0


def upload(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def download(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True))


@dataclass
class Layer:
    """A quantizing op with state on the device, and what the evaluator would remember."""

    lib: OnlineLibrary
    case: QuantizeCase
    idx: np.ndarray
    capacity: int
    sigma: float = 0.0
    sigma_rms: float = SIGMA_RMS
    known: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        m, k, t = self.case.rows, self.case.cols, TYPES[self.case.dtype]
        self.known = numerics.pad_indices(self.idx[self.idx >= 0], self.capacity)
        self.device_idx = upload(self.idx)
        self.state = self.lib.prediction_state(self.device_idx, k, self.capacity)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "xq": ((m, k), torch.int8),
            "sx": ((m, 1), torch.float32),
            "xo": ((m, self.capacity), t),
            "set": ((self.capacity,), torch.int32),
            **({} if self.case.producer == "MixQQuantize" else {"y": ((m, k), t)}),
        }
        self.outputs = {name: torch.empty(shape, dtype=kind, device="cuda") for name, (shape, kind) in shapes.items()}
        self.inputs: dict[str, torch.Tensor] = {}

    def feed(self, inputs: dict[str, np.ndarray]) -> None:
        """Put inputs where the (possibly captured) call reads them."""
        for name, value in inputs.items():
            if name == "idx":
                continue
            if name in self.inputs:
                self.inputs[name].copy_(upload(value))
            else:
                self.inputs[name] = upload(value)

    def call(self) -> None:
        rest = {name: value for name, value in self.inputs.items() if name != "x"}
        self.lib.quantize_online(
            self.case.producer,
            self.inputs["x"],
            self.device_idx,
            self.outputs,
            self.state,
            sigma=self.sigma,
            sigma_rms=self.sigma_rms,
            epsilon=EPSILON,
            **rest,
        )

    def check(self) -> None:
        """Compare the outputs with the evaluator, and remember what it found.

        Raises:
            AssertionError: anything differs.
        """
        got = {name: download(value) for name, value in self.outputs.items()}
        y = got.get("y", download(self.inputs["x"]))
        self.known = numerics.predict_outliers(
            y, self.known, sigma=self.sigma, sigma_rms=self.sigma_rms, capacity=self.capacity
        )
        assert same(got["set"], self.known), f"set {got['set'][:12]} is not {self.known[:12]}"
        for name, want in zip(("xq", "sx", "xo"), numerics.quantize_rows(y, self.known), strict=True):
            assert same(got[name], want), f"{name} is not that of the set"


def inputs_with(case: QuantizeCase, rng: np.random.Generator, channels: list[int]) -> dict[str, np.ndarray]:
    """Inputs of the case with further large values in ``channels``."""
    made = case.inputs(rng)
    x = made["x"].astype(np.float32)
    x[:, channels] = rng.standard_normal((case.rows, len(channels))) * 60
    made["x"] = x.astype(made["x"].dtype)
    return made


def single_calls(lib: OnlineLibrary) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every op, type and kernel; with NaN, Inf and zero rows; sets that are empty, short, full; no rows."""
    shapes = [(1, 4096), (16, 4096), (37, 576), (300, 1000), (9, 20480), (5, 77), (2000, 1536)]
    for dtype, producer, (m, k) in itertools.product(TYPES, PRODUCERS, shapes):
        # The evaluator of erf is a Python loop.
        if producer in ("MixQGelu", "MixQGatedGelu", "MixQGeGLU") and m * k > 200_000:
            continue
        case = QuantizeCase(producer, dtype, m, k, 32, special=True)

        def check(case: QuantizeCase = case) -> None:
            rng = np.random.default_rng(case.rows * 31 + case.cols)
            made = inputs_with(case, rng, [1, 20, case.cols - 2])
            listed = np.sort(made["idx"][made["idx"] >= 0])[::2]
            layer = Layer(lib, case, numerics.pad_indices(listed, 32), 64)
            layer.feed(made)
            layer.call()
            torch.cuda.synchronize()
            layer.check()

        yield f"single {case}", check


def bounds(lib: OnlineLibrary) -> Iterator[tuple[str, Callable[[], None]]]:
    """Thresholds and capacities at their limits."""
    for name, sigma, sigma_rms, scale, capacity in (
        ("sigma", 6.0, 0.0, 1.0, 64),
        ("both", 30.0, 5.0, 1.0, 64),
        ("none", 0.0, 0.0, 1.0, 64),
        ("every channel", 1e-3, 0.0, 1.0, 32),
        ("overflow", 0.0, 1.5, 1.0, 48),
        ("tiny values", 0.0, 5.0, 1e-30, 64),
        ("full", 0.0, 5.0, 1.0, 16),
    ):
        for m in (3, 900):

            def check(
                m: int = m, sigma: float = sigma, rms: float = sigma_rms, scale: float = scale, c: int = capacity
            ) -> None:
                case = QuantizeCase("MixQQuantize", "float32", m, 512, 16)
                rng = np.random.default_rng(m)
                made = inputs_with(case, rng, [4, 300, 511])
                made["x"] *= np.float32(scale)
                known = np.arange(0, 512, 32) if c == 16 else np.array([4])
                layer = Layer(lib, case, numerics.pad_indices(known, 16), c, sigma, rms)
                layer.feed(made)
                for _ in range(2):
                    layer.call()
                    torch.cuda.synchronize()
                    layer.check()

            yield f"bounds {name} M={m}", check

    def no_rows() -> None:
        case = QuantizeCase("MixQQuantize", "float16", 0, 512, 16)
        layer = Layer(lib, case, numerics.pad_indices(np.array([7]), 16), 32)
        layer.feed(case.inputs(np.random.default_rng(0)))
        layer.call()
        torch.cuda.synchronize()
        layer.check()

    yield "no rows", no_rows


DRIFT = [[3, 9], [9, 60], [], [60, 61, 500], [400, 401, 402, 403], []]


def sequences(lib: OnlineLibrary) -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls that remember: on one stream, replayed from a graph, and on two streams at once."""

    def layer_of(seed: int, rows: int = 40) -> tuple[Layer, QuantizeCase, np.random.Generator]:
        case = QuantizeCase("MixQAddRMSNorm", "float16", rows, 1024, 16)
        return Layer(lib, case, numerics.pad_indices(np.zeros(0), 16), 64), case, np.random.default_rng(seed)

    def plain() -> None:
        layer, case, rng = layer_of(1)
        for channels in DRIFT:
            layer.feed(inputs_with(case, rng, channels))
            layer.call()
            torch.cuda.synchronize()
            layer.check()

    def graph() -> None:
        layer, case, rng = layer_of(2)
        layer.feed(inputs_with(case, rng, DRIFT[0]))
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(captured):
            layer.call()
        for channels in DRIFT:
            layer.feed(inputs_with(case, rng, channels))
            captured.replay()
            torch.cuda.synchronize()
            layer.check()

    def streams() -> None:
        layers = [layer_of(3, 2000), layer_of(4, 2000)]
        lanes = [torch.cuda.Stream(), torch.cuda.Stream()]
        for a, b in zip(DRIFT, reversed(DRIFT), strict=True):
            for (layer, case, rng), channels in zip(layers, (a, b), strict=True):
                layer.feed(inputs_with(case, rng, channels))
            torch.cuda.synchronize()
            for (layer, _, _), lane in zip(layers, lanes, strict=True):
                with torch.cuda.stream(lane):
                    layer.call()
            torch.cuda.synchronize()
            for layer, _, _ in layers:
                layer.check()

    yield "sequence", plain
    yield "sequence in a graph", graph
    yield "sequence on two streams", streams


def columns(lib: OnlineLibrary) -> Iterator[tuple[str, Callable[[], None]]]:
    """Outlier columns of growing sets, exact, for every type and both widths of codes."""
    for dtype, group, n in itertools.product(TYPES, (0, 64), (1, 200, 4100)):

        def check(dtype: str = dtype, group: int = group, n: int = n) -> None:
            rng, k = np.random.default_rng(n + group), 256
            kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
            idx = numerics.pad_indices(rng.choice(k, 9, replace=False), 16)
            codes = rng.integers(-7, 8, (n, k)).astype(np.int8) if group else rng.integers(-127, 128, (n, k), np.int8)
            sg = rng.integers(1, 19, (k // group, n)).astype(np.int8) if group else None
            wc = numerics.grouped_codes(codes, sg, group) if group else codes
            sw = rng.uniform(1e-3, 1e-2, n).astype(np.float32)
            wo = rng.standard_normal((n, 16)).astype(kind)
            fixed = [upload(a) for a in (pack_int4(codes) if group else codes, sw, wo, idx)]
            scales = None if sg is None else upload(sg)
            state, made = lib.columns_state(fixed[2], 48)
            known = idx
            for size in (0, 1, 7, 20, 0):
                known = np.unique(np.concatenate([known[known >= 0], rng.choice(k, size, replace=False)]))
                extended = numerics.pad_indices(known, 48)
                lib.columns(*fixed, upload(extended), state, sg=scales, group=group)
                torch.cuda.synchronize()
                dequantized = wc[:, extended].astype(np.float32) * sw[:, None]
                want = numerics.extend_columns(wo, idx, extended, dequantized)
                assert same(download(made), want), f"columns of {size} more channels"

        yield f"columns {dtype} group={group} N={n}", check


def median_us(run: Callable[[], None], repeats: int = 40) -> float:
    """Median time of ``run`` in a graph of 20 copies, in microseconds."""
    copies = 20
    run()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for _ in range(copies):
            run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        captured.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / copies)
    return float(np.median(times))


def timings(lib: OnlineLibrary) -> Iterator[dict[str, Any]]:
    """What prediction costs when nothing new is found: quantize and linear, without it and with it."""
    for (n, k), m in itertools.product(((4096, 4096), (28672, 8192)), (1, 16, 512, 4096)):
        half, device = torch.float16, "cuda"
        x = torch.randn(m, k, dtype=half, device=device)
        gamma = torch.ones(k, dtype=half, device=device)
        idx = torch.full((128,), -1, dtype=torch.int32, device=device)
        idx[:32] = torch.arange(32, dtype=torch.int32) * 7
        out = {
            "xq": torch.empty(m, k, dtype=torch.int8, device=device),
            "sx": torch.empty(m, 1, dtype=torch.float32, device=device),
            "xo": torch.empty(m, 128, dtype=half, device=device),
            "set": torch.empty(128, dtype=torch.int32, device=device),
        }
        wq = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        sw, wo = torch.rand(n, device=device) * 1e-3, torch.randn(n, 128, dtype=half, device=device)
        bias, y = torch.zeros(n, dtype=half, device=device), torch.empty(m, n, dtype=half, device=device)
        state = lib.prediction_state(idx, k, 128)
        kept, cols = lib.columns_state(wo, 128)

        def offline(x=x, idx=idx, out=out, gamma=gamma) -> None:
            lib.quantize("MixQRMSNorm", x, idx, out, gamma=gamma, epsilon=EPSILON)

        def online(sigma: float, rms: float, x=x, idx=idx, out=out, gamma=gamma, state=state) -> None:
            lib.quantize_online(
                "MixQRMSNorm", x, idx, out, state, sigma=sigma, sigma_rms=rms, gamma=gamma, epsilon=EPSILON
            )

        def refresh(wq=wq, sw=sw, wo=wo, idx=idx, out=out, kept=kept) -> None:
            lib.columns(wq, sw, wo, idx, out["set"], kept)

        def linear(outliers: torch.Tensor, out=out, wq=wq, sw=sw, bias=bias, y=y) -> None:
            lib.linear(out["xq"], out["sx"], out["xo"], wq, sw, outliers, bias, y)

        def both(online=online, refresh=refresh, linear=linear, cols=cols) -> None:
            online(0, SIGMA_RMS * 4)
            refresh()
            linear(cols)

        def neither(offline=offline, linear=linear, wo=wo) -> None:
            offline()
            linear(wo)

        yield {
            "m": m,
            "n": n,
            "k": k,
            "quantize_us": median_us(offline),
            "quantize_sigma_us": median_us(lambda online=online: online(1e4, 0)),
            "quantize_sigma_rms_us": median_us(lambda online=online: online(0, SIGMA_RMS * 4)),
            "linear_us": median_us(lambda linear=linear, wo=wo: linear(wo)),
            "columns_and_linear_us": median_us(
                lambda refresh=refresh, linear=linear, cols=cols: (refresh(), linear(cols))
            ),
            "offline_us": median_us(neither),
            "online_us": median_us(both),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--no-timings", action="store_true")
    options = parser.parse_args()
    lib = OnlineLibrary(options.library)
    start, failures, count = time.time(), [], 0
    report: dict[str, Any] = {**environment(lib), "cases": 0, "failures": failures, "timings": []}
    options.json.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        report["seconds"] = round(time.time() - start, 1)
        options.json.write_text(json.dumps(report, indent=1) + "\n")

    for name, check in itertools.chain(columns(lib), sequences(lib), bounds(lib), single_calls(lib)):
        count += 1
        try:
            check()
        except (AssertionError, RuntimeError, ValueError) as e:
            failures.append(f"{name}: {type(e).__name__}: {e}".splitlines()[0])
            print(failures[-1], flush=True)
        report["cases"] = count
    save()
    print(f"online prediction: {count} cases, {len(failures)} failed, {time.time() - start:.0f} s", flush=True)
    for row in () if options.no_timings else timings(lib):
        report["timings"].append(row)
        print(", ".join(f"{k}={v if isinstance(v, int) else round(v, 2)}" for k, v in row.items()), flush=True)
        save()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
