"""Hold the torch ops and the decoder of a `graphopt deploy tensorrt-llm` folder to their references, then time a layer.

    python benchmarks/torch_models.py OUT                            folders with the logits of their graphs
    python benchmarks/torch_ops.py --json FILE OUT/*                 where a GPU is; needs no graph and no ONNX Runtime
    python benchmarks/torch_ops.py --device cpu --quick OUT/*        the same as far as the CPU goes

Checked are: ops against the numpy evaluators (planted outliers, NaN, Inf and zero rows), torch.library.opcheck,
torch.compile with fullgraph, CUDA graphs with new inputs, a stream of one's own, refused arguments, and each folder's
decoder against its graph: at once, token by token from a cache, compiled, and captured.
"""

import argparse
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from correctness import TYPES, numpy_dtype, torch_dtype
from mixq_cases import EPSILON, LinearCase, QuantizeCase, numerics, row_error
from torch import nn
from torch_decoder import Folder, captured, rows_of, same, time_host, time_layers

from graphopt.results import provenance, write_rows

OPS = torch.ops.graphopt
PRODUCERS = {
    "MixQQuantize": "mixq_quantize",
    "MixQRMSNorm": "mixq_rms_norm",
    "MixQAddRMSNorm": "mixq_add_rms_norm",
    "MixQSwiGLU": "mixq_swiglu",
}
LINEARS = {"MixQLinear": "mixq_linear", "MixQLinearW4A8": "mixq_linear_w4a8"}
#: Producer in the C API's numbers -> the plugin of it alone; the ops that quantize and multiply.
FUSED = {0: "MixQQuantize", 1: "MixQRMSNorm", 2: "MixQAddRMSNorm", 10: "MixQSwiGLU"}
#: What compilers, graphs and streams are tried with.
PAIRS = [(op, t) for op in LINEARS for t in (torch.float16, torch.bfloat16)]
#: Fraction of codes that may differ by one from the evaluator's, whose y is rounded from another float32.
MOVED_CODES = 0.01


def tensor(array: np.ndarray, device: str) -> torch.Tensor:
    if array.size == 0:
        return torch.empty(array.shape, dtype=torch_dtype(array.dtype), device=device)
    raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).ravel().copy())
    return raw.to(device).view(torch_dtype(array.dtype)).view(array.shape)


def array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu().contiguous()
    if value.numel() == 0:
        return np.empty(tuple(value.shape), numpy_dtype(value.dtype))
    return value.view(-1).view(torch.uint8).numpy().view(numpy_dtype(value.dtype)).reshape(tuple(value.shape))


def arguments(case: QuantizeCase | LinearCase, device: str) -> tuple[Any, ...]:
    """Arguments of the torch op, whose inputs come in the plugin's order."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    inputs = case.inputs(rng)
    if isinstance(case, LinearCase):
        group = () if case.op == "MixQLinear" else (case.group,)
        return (*(tensor(v, device) for v in inputs.values()), *group)
    given = tuple(tensor(inputs[n], device) for n in ("x", "other", "gamma", "idx") if n in inputs)
    return (*given, EPSILON) if case.norm else given


def op_of(case: QuantizeCase | LinearCase) -> Any:
    return getattr(OPS, (PRODUCERS | LINEARS)[case.op])


def cases(quick: bool) -> Iterator[QuantizeCase | LinearCase]:
    rows = (0, 1, 17) if quick else (0, 1, 17, 300)
    for dtype in TYPES:
        for producer in PRODUCERS:
            for k in (64, 576, 100) if quick else (64, 576, 4096, 4100):
                for m in rows:
                    yield QuantizeCase(producer, dtype, m, k, 32, special=True)
        for op in LINEARS:
            for n, k in ((72, 160), (33, 100)) if quick else ((72, 160), (1000, 576), (4096, 4096), (33, 100)):
                for m in rows:
                    yield LinearCase(dtype, m, n, k, 48, special=True, op=op, group=64)


def check_case(case: QuantizeCase | LinearCase, device: str) -> None:
    """Compare an op with its evaluator."""
    given = arguments(case, device)
    got = op_of(case)(*given)
    if isinstance(case, LinearCase):
        inputs = case.inputs(np.random.default_rng(zlib.crc32(str(case).encode())))
        error = row_error(array(got), case.expected(inputs))
        assert error <= numerics.ROW_TOLERANCE[case.dtype], f"row error {error:.1e}"
        return
    inputs = case.inputs(np.random.default_rng(zlib.crc32(str(case).encode())))
    y, total = case.produced(inputs)
    xq, sx, xo = numerics.quantize_rows(y, inputs["idx"])
    found = [array(t) for t in got]
    tolerance = numerics.ROW_TOLERANCE[case.dtype]
    finite = np.isfinite(sx[:, 0])
    assert np.array_equal(np.isfinite(found[1][:, 0]), finite), "other rows are finite"
    difference = np.abs(found[0][finite].astype(int) - xq[finite].astype(int))
    exact = case.producer == "MixQQuantize"
    assert difference.max(initial=0) <= (0 if exact else 1), f"codes differ by {difference.max()}"
    assert difference.size == 0 or difference.mean() <= MOVED_CODES, f"{difference.mean():.1%} of the codes moved"
    assert np.allclose(found[1][finite], sx[finite], rtol=0 if exact else 2 * tolerance, atol=0), "scales differ"
    assert row_error(found[2], xo) <= (0 if exact else tolerance), "outliers differ"
    if total is not None:
        assert np.array_equal(found[3], total, equal_nan=True), "the sum is not exact"


def fused_arguments(producer: int, linear: LinearCase, device: str) -> tuple[Any, tuple[Any, ...]]:
    """The op that quantizes and multiplies, and its arguments."""
    rng = np.random.default_rng(zlib.crc32(f"{producer} {linear}".encode()))
    case = QuantizeCase(FUSED[producer], linear.dtype, linear.m, linear.k, linear.capacity)
    given = {name: tensor(v, device) for name, v in case.inputs(rng).items()}
    codes, *scales = (tensor(v, device) for name, v in linear.weights(rng).items() if name != "idx")
    weights = (codes, *scales, linear.group) if linear.op == "MixQLinearW4A8" else (codes, None, *scales, 0)
    shared = (given.get("gamma"), given["idx"], EPSILON, *weights)
    if case.adds:
        return OPS.mixq_add_rms_norm_linear, (given["x"], given["other"], *shared)
    return OPS.mixq_quantize_linear, (producer, given["x"], *shared)


def check_fused(producer: int, linear: LinearCase, device: str) -> None:
    """Compare an op that quantizes and multiplies with the two ops that do one of both: the bits are the same."""
    op, given = fused_arguments(producer, linear, device)
    adds = FUSED[producer] == "MixQAddRMSNorm"
    inputs, (gamma, idx, epsilon, codes, sg, *scales, group) = given[:2], given[2:]
    inputs = inputs if adds else inputs[1:]
    norm = () if gamma is None else (gamma,)
    apart = getattr(OPS, PRODUCERS[FUSED[producer]])(*inputs, *norm, idx, *((epsilon,) if norm else ()))
    product = OPS.mixq_linear(*apart[:3], codes, *scales) if sg is None else None
    if sg is not None:
        product = OPS.mixq_linear_w4a8(*apart[:3], codes, sg, *scales, group)
    got = op(*given)
    same(got if adds else (got,), (product, apart[3]) if adds else (product,))


def fused_cases(quick: bool) -> Iterator[tuple[int, LinearCase]]:
    for producer in FUSED:
        for dtype in TYPES:
            for op in LINEARS:
                for n, k in ((72, 160), (33, 100)) if quick else ((72, 160), (1000, 576), (4096, 4096), (33, 100)):
                    for m in (0, 1, 17):
                        yield producer, LinearCase(dtype, m, n, k, 48, op=op, group=64)


def check_module(producer: int, op: str, dtype: torch.dtype, device: str) -> None:
    """A module, which may leave torch's dispatcher aside, gives the bits of its op, also when its weights move."""
    from graphopt_trtllm.layers import PackedLinear

    n, k, bits = 72, 160, 4 if op == "MixQLinearW4A8" else 8
    settings = {"bits": bits, "group": 64, "outliers": 32}
    with torch.device(device):
        module = PackedLinear(n, k, settings, dtype, {2: 1}.get(producer, producer), EPSILON)
    name = next(n for n, t in TYPES.items() if t == dtype)
    for m in (1, 5, 0):
        call, given = fused_arguments(producer, LinearCase(name, m, n, k, 32, op=op, group=64), device)
        adds = FUSED[producer] == "MixQAddRMSNorm"
        x, (gamma, idx, _, *weights, _) = given[0 if adds else 1], given[2:]
        for parameter, value in zip(module._parameters.values(), (gamma, idx, *weights), strict=True):
            if parameter is not None:
                parameter.data = value.clone()
        wanted = call(*given)
        got = module(x, given[1]) if adds else module(x)[:1]
        same(got, wanted if adds else (wanted,))
    wide = torch.zeros(4, 4 * k, dtype=dtype, device=device)
    for wrong in (wide[:, : x.shape[-1]], wide[:, :-1].contiguous(), wide[:, : x.shape[-1]].to(torch.float64)):
        try:
            module(wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong.dtype} {tuple(wrong.shape)} {wrong.stride()} was not refused")


class Chain(nn.Module):
    """Add and norm, gate and up, SwiGLU, down: what a compiler and a graph get to see of a layer."""

    def __init__(self, width: int, wide: int, dtype: torch.dtype, device: str, op: str) -> None:
        super().__init__()
        name = next(n for n, t in TYPES.items() if t == dtype)

        def linear(n: int, k: int) -> list[Any]:
            case = LinearCase(name, 0, n, k, 32, op=op, group=64)
            return [tensor(v, device) for v in case.weights(np.random.default_rng(n)).values()]

        self.idx, *self.gate_up = linear(2 * wide, width)
        self.wide_idx, *self.down = linear(width, wide)
        self.gamma = torch.linspace(0.5, 1.5, width, device=device).to(dtype)
        self.op, self.group = getattr(OPS, LINEARS[op]), () if op == "MixQLinear" else (64,)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *quantized, total = OPS.mixq_add_rms_norm(x, residual, self.gamma, self.idx, EPSILON)
        quantized = OPS.mixq_swiglu(self.op(*quantized, *self.gate_up, *self.group), self.wide_idx)
        return self.op(*quantized, *self.down, *self.group), total


def check_compiled(op: str, dtype: torch.dtype, device: str) -> None:
    """A compiled chain gives the bits of an eager one, for several numbers of tokens from one compilation."""
    chain = Chain(256, 640, dtype, device, op)
    compiled = torch.compile(
        chain, fullgraph=True, dynamic=True, backend="inductor" if device == "cuda" else "aot_eager"
    )
    for m in (2, 5, 33):
        given = rows_of(m, 256, dtype, device, m), rows_of(m, 256, dtype, device, m + 1)
        same(compiled(*given), chain(*given))


def check_graph(op: str, dtype: torch.dtype, device: str) -> None:
    """Replays with new inputs give the bits of eager calls; memory that eager calls reuse between does no harm."""
    chain = Chain(576, 1536, dtype, device, op)
    given = [rows_of(9, 576, dtype, device, 0), rows_of(9, 576, dtype, device, 1)]
    graph, outputs = captured(lambda: chain(*given))
    for seed in (10, 20, 30):
        new = [rows_of(9, 576, dtype, device, seed), rows_of(9, 576, dtype, device, seed + 1)]
        wanted = [t.clone() for t in chain(*new)]
        for old, value in zip(given, new, strict=True):
            old.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        same(outputs, wanted)


def check_stream(op: str, dtype: torch.dtype, device: str) -> None:
    """Calls go to the current stream: behind a long kernel there, and not beside it."""
    chain = Chain(576, 1536, dtype, device, op)
    x, residual = rows_of(9, 576, dtype, device, 0), rows_of(9, 576, dtype, device, 1)
    wanted = [t.clone() for t in chain(x, residual)]
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        got = chain(late, residual)
    stream.synchronize()
    same(got, wanted)


def check_refusals(device: str) -> None:
    """Arguments that do not fit are refused before a kernel sees them."""
    case = LinearCase("float16", 4, 72, 160, 32, op="MixQLinearW4A8", group=64)
    xq, sx, xo, wq4, sg, sw, wo, bias, group = arguments(case, device)
    good = (xq, sx, xo, wq4, sg, sw, wo, bias, group)
    OPS.mixq_linear_w4a8(*good)
    for position, wrong in (
        (0, xq.to(torch.int32)),
        (1, sx[:2]),
        (2, xo.float()),
        (2, xo[:, :17]),
        (3, wq4[:, :-1]),
        (4, sg[:1]),
        (5, sw.half()),
        (7, bias[:8]),
        (8, 48),
    ):
        try:
            OPS.mixq_linear_w4a8(*good[:position], wrong, *good[position + 1 :])
        except ValueError:
            continue
        raise AssertionError(f"argument {position} was not refused")
    try:
        OPS.mixq_quantize(xo.T, torch.full((16,), -1, dtype=torch.int32, device=device))
    except ValueError:
        return
    raise AssertionError("a transposed tensor was not refused")


def check_fused_refusals(device: str) -> None:
    """The same of an op that quantizes and multiplies."""
    op, good = fused_arguments(1, LinearCase("float16", 4, 72, 160, 32, op="MixQLinearW4A8", group=64), device)
    op(*good)
    wrong = {0: 3, 1: good[1].float(), 2: None, 3: good[3][:5], 5: good[5][:, :-1], 6: None, 7: good[7].half(), 10: 48}
    for position, value in wrong.items():
        try:
            op(*good[:position], value, *good[position + 1 :])
        except ValueError:
            continue
        raise AssertionError(f"argument {position} was not refused")


class Report:
    """Results, written as they come."""

    def __init__(self, path: Path | None, shared: dict[str, Any]) -> None:
        self.path, self.shared, self.rows = path, shared, []
        self.failed = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({"suite": "torch_ops", **row})
        if self.path is not None:
            write_rows(self.path, [row | self.shared for row in self.rows])

    def check(self, name: str, tasks: dict[str, Callable[[], Any]]) -> None:
        """Run ``tasks``, all of them whatever happens; a number that one returns is how far off it was."""
        start, failures, worst = time.perf_counter(), [], 0.0
        for case, task in tasks.items():
            try:
                worst = max(worst, task() or 0.0)
            except Exception as e:
                failures.append(f"{case}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
                if len(failures) == 1:
                    traceback.print_exc()
        self.failed += len(failures)
        row = {"case": name, "checks": len(tasks), "failures": failures[:10], "worst": worst}
        self.add(row | {"seconds": round(time.perf_counter() - start, 1)})
        print(f"{name}: {len(tasks)} checks, {len(failures)} failed, worst {worst:.2e}", *failures[:5], sep="\n  ")


def check_compilers(report: Report, folder: Folder) -> None:
    """What torch.compile relies on, and torch.compile itself."""
    device = folder.device
    small: list[QuantizeCase | LinearCase] = [
        *(QuantizeCase(p, t, 5, 96, 32) for p in PRODUCERS for t in ("float16", "bfloat16")),
        *(LinearCase("float16", 5, 40, 96, 32, op=op) for op in LINEARS),
    ]
    calls = {str(c): (op_of(c), arguments(c, device)) for c in small}
    for producer, op in ((10, "MixQLinear"), (2, "MixQLinearW4A8")):
        calls[f"{FUSED[producer]} and {op}"] = fused_arguments(
            producer, LinearCase("float16", 5, 40, 96, 32, op=op), device
        )
    report.check(
        "opcheck", {n: lambda c=c: torch.library.opcheck(c[0].default, c[1]) and None for n, c in calls.items()}
    )
    report.check("compile", {f"{op} {t}": partial(check_compiled, op, t, device) for op, t in PAIRS})
    report.check(f"compiled decoder {folder.name}", {"compiled": folder.compiled})


def check(options: argparse.Namespace) -> int:
    sys.path.insert(0, str(options.folders[0] / "package"))
    import graphopt_trtllm  # registers the ops

    device = options.device
    shared = {"torch": torch.__version__, "package": graphopt_trtllm.__version__, **provenance()}
    if device == "cuda":
        shared |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    report = Report(options.json, shared)
    with torch.no_grad():
        report.check("evaluators", {str(c): partial(check_case, c, device) for c in cases(options.quick)})
        report.check(
            "fused", {f"{FUSED[p]} {c}": partial(check_fused, p, c, device) for p, c in fused_cases(options.quick)}
        )
        report.check(
            "modules",
            {f"{FUSED[p]} {op} {t}": partial(check_module, p, op, t, device) for p in FUSED for op, t in PAIRS},
        )
        report.check(
            "refusals", {"ops": lambda: check_refusals(device), "fused ops": lambda: check_fused_refusals(device)}
        )
        if device == "cuda":
            report.check("cuda_graph", {f"{op} {t}": partial(check_graph, op, t, device) for op, t in PAIRS})
            report.check("stream", {f"{op} {t}": partial(check_stream, op, t, device) for op, t in PAIRS})
        for path in options.folders:
            folder = Folder(path, device)
            tasks = {"at once": folder.at_once, "from a cache": folder.from_cache}
            if device == "cuda":
                tasks["captured"] = folder.graphed
            report.check(f"decoder {folder.name}", tasks)
        if device == "cuda":
            time_host(report.add)
            time_layers(report.add)
        if not options.no_compile:
            check_compilers(report, Folder(options.folders[0], device))
    print(f"{report.failed} failed")
    return 1 if report.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out opcheck and torch.compile, half of the time"
    )
    return check(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
