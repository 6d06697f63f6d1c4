"""Engines on a GPU: check them against references, and time quantized layers of Llama's shapes against fp16.

    python benchmarks/engine.py check --cases FOLDER --work FOLDER --json FILE
    python benchmarks/engine.py make --work FOLDER [--preset llama-2-7b] [--layers 4] [--schemes NAMES]
    python benchmarks/engine.py build --work FOLDER [--schemes NAMES] [--phases decode,prefill] [--batches 1,4,16,64]
    python benchmarks/engine.py time --work FOLDER --json FILE [as build] [--seconds 500]
    python benchmarks/engine.py merge FILE [FILE ...] --json FILE

NAMES, with commas between, are tensorrt_fp16 (a growing cache, no plugins), fp16-static, or a preset of `optimize`,
with "+" and the preset of a cache behind it: vq-quip4+cq4. `check` reads what benchmarks/engine_cases.py wrote. `build`
makes one plan per scheme and phase of what `make` wrote, all with the kernels that one process loads once: one process
at a time, because builders that share a GPU wait for each other. ``--level`` is TensorRT's optimization level for all
but the baseline, which gets TensorRT's own choice: it tunes what is between plugins only, for minutes. `time` builds
what is missing and times all; it writes the JSON after every plan and starts none once ``--seconds`` have passed.
`merge` makes one file of several runs of `time`: the last row of a case and scheme counts.
"""

import argparse
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import engine_models
import numpy as np
from engine_shapes import Call, Inputs

from graphopt.engine import gpu
from graphopt.engine.build import BuildOptions, build
from graphopt.engine.flavour import select
from graphopt.engine.measure import by_op, latency
from graphopt.engine.run import Runner
from graphopt.errors import GraphOptError
from graphopt.models.presets import LLAMA_PRESETS
from graphopt.results import provenance

#: Share of int8 codes that may differ by one step (see tests/contract/test_ops.py).
BOUNDARY_CODES = 0.01
CONTEXT, PROMPT = 2048, 2048
OUTLIERS = 128
BASELINE = "tensorrt_fp16"
#: Bits of a weight or of a cached value; 16 for weights of what is not here.
BITS = {
    "mixq-w8a8": 8, "mixq-w4a8": 4, "mant-w4a16": 4, "mant-w4a8": 4, "mant-int8": 4, "vq-quip4": 4, "vq-aqlm3": 3,
    "vq-aqlm2": 2, "vq-gptvq2": 2, "static": 16, "cq4": 4, "cq2": 2, "kv-mant4": 4,
}  # fmt: skip

Row = dict[str, Any]


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def shapes_text(shapes: dict[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


@functools.cache
def keep_builder() -> Any:
    """A builder that lives as long as the process: with it stay the 3 GB of kernels that each one needs."""
    return select("tensorrt").builder()


def build_plan(model: Path, plan: Path, options: BuildOptions) -> None:
    """Build, and say what came of it."""
    keep_builder()
    started = time.monotonic()
    result = build(model, plan, replace(options, flavour="tensorrt"))
    for warning in result.warnings[:8]:
        log(f"  warning: {warning[:200]}")
    log(f"  {plan.name}: {time.monotonic() - started:.0f} s, {result.manifest.plan_bytes / 1e6:.0f} MB, "
        f"{result.manifest.plugin_layers} plugin layers")  # fmt: skip


# -- check


def error_of(got: np.ndarray, want: np.ndarray, step: int = 1) -> float:
    """Normalized error; for int8 codes, the share that differs, infinite if one does by more than ``step``."""
    if want.dtype == np.int8:
        # TensorRT 8 hands INT8 over as INT32, four to an element.
        codes = got.view(np.int8).reshape(want.shape) if got.dtype == np.int32 else got
        difference = np.abs(codes.astype(np.int32) - want.astype(np.int32))
        return float("inf") if difference.max(initial=0) > step else float(difference.astype(bool).mean())
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = ~np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), ~same):
        return float("inf")
    a, b = np.where(same, 0, a), np.where(same, 0, b)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def packed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.int32) if array.dtype == np.int8 else array


def check_case(data: Path, model: Path, work: Path, level: int | None) -> list[dict[str, Any]]:
    arrays = dict(np.load(data))
    feeds = {k[3:]: packed(v) for k, v in arrays.items() if k.startswith("in.")}
    shapes = () if data.stem.startswith("ops_") else (shapes_text({k: v.shape for k, v in feeds.items()}),)
    plan = work / f"{data.stem}.plan"
    options = BuildOptions(opt_shapes=shapes, timing_cache=work / "check.cache", optimization_level=level)
    build_plan(model, plan, options)
    rows = []
    with Runner(plan) as runner:
        for graph in (False, True):
            outputs = runner.infer(feeds, cuda_graph=graph)
            for name, got in outputs.items():
                want = arrays[f"out.{name}"]
                limit = BOUNDARY_CODES if want.dtype == np.int8 else float(arrays[f"limit.{name}"])
                error = error_of(got, want, int(arrays.get(f"step.{name}", 1)))
                rows.append({"case": data.stem, "output": name, "cuda_graph": graph, "error": error, "limit": limit,
                             "ok": bool(error <= limit)})  # fmt: skip
    return rows


def check(arguments: argparse.Namespace) -> bool:
    rows: list[dict[str, Any]] = []
    for data in sorted(arguments.cases.glob("*.npz"), key=lambda p: (not p.stem.startswith("ops_"), p.stem)):
        model = arguments.cases / f"{data.stem}.onnx"
        if not model.exists():
            model = arguments.cases / f"{data.stem.rpartition('.')[0]}.onnx"
        log(f"check {data.stem}")
        found = attempt(data.stem, functools.partial(check_case, data, model, arguments.work, arguments.level))
        found = found or [{"case": data.stem, "ok": False, "error": "did not run"}]
        for row in found:
            if not row["ok"] or "logits" in str(row.get("output")):
                log(f"  {'ok  ' if row['ok'] else 'FAIL'} {row}")
        log(f"  {sum(r['ok'] for r in found)} of {len(found)} outputs agree")
        rows += found
        arguments.json.write_text(json.dumps(rows, indent=1))
    return all(r["ok"] for r in rows)


def attempt(what: str, action: Callable[[], Any]) -> Any:
    """The result of ``action``; None if it failed, which is printed and must not stop the other cases."""
    try:
        return action()
    except GraphOptError as e:
        log(f"  {what}: {e}")
    except Exception:
        log(f"  {what}:\n{traceback.format_exc()}")
    return None


# -- time


def parts(name: str) -> tuple[str, str]:
    """Scheme and cache of a name in the results; all but the baseline update their cache in place."""
    scheme, _, cache = name.partition("+")
    return "none" if scheme == "fp16-static" else scheme, cache or "static"


def make(arguments: argparse.Namespace) -> bool:
    work, started = arguments.work, time.monotonic()
    config = replace(LLAMA_PRESETS[arguments.preset], num_hidden_layers=arguments.layers, vocab_size=512)
    (work / "config.json").write_text(json.dumps({"preset": arguments.preset, **asdict(config)}))
    source = work / f"{BASELINE}.onnx"
    if not source.exists():
        engine_models.write_decoder(config, source, outliers=0)
        log(f"make: fp16 model in {time.monotonic() - started:.0f} s")
    statistics = engine_models.planted(source, OUTLIERS, config)
    for name in arguments.schemes.split(","):
        if name != BASELINE:
            scheme = "+".join(parts(name))
            target = work / f"{name}.onnx"
            engine_models.optimize(source, target, statistics, scheme=scheme, random_codes=True)
            log(f"make: {name} after {time.monotonic() - started:.0f} s")
    return True


@dataclass(frozen=True)
class Model:
    """Decoder layers of a published size."""

    work: Path

    @property
    def label(self) -> str:
        """What the cases are called."""
        config = json.loads((self.work / "config.json").read_text())
        layers = config["num_hidden_layers"]
        return f"{config['preset']} {layers} layer{'s' if layers > 1 else ''}"

    def inputs(self, name: str) -> Inputs:
        """Of the engine of a scheme."""
        return Inputs(self.work / f"{name}.onnx", packed=True)


def cases_of(phase: str, batches: list[int]) -> list[Call]:
    """The calls that are timed."""
    return [Call(1, PROMPT, 0)] if phase == "prefill" else [Call(batch, 1, CONTEXT) for batch in batches]


def build_phase(name: str, phase: str, cases: list[Call], model: Model, level: int | None) -> Path | None:
    """One plan for all ``cases``, tuned for the batch in the middle of them; not again where there is one."""
    plan, inputs = model.work / f"{name}.{phase}.plan", model.inputs(name)
    if plan.exists():
        return plan
    ordered = sorted(cases, key=lambda c: c.batch)
    low, usual, high = (inputs.text(c) for c in (ordered[0], ordered[len(cases) // 2], ordered[-1]))
    log(f"build {plan.name}")

    options = BuildOptions(
        min_shapes=(low,), opt_shapes=(usual,), max_shapes=(high,), timing_cache=plan.with_suffix(".cache"),
        optimization_level=None if name == BASELINE else level,
    )  # fmt: skip

    def action() -> bool:
        build_plan(model.work / f"{name}.onnx", plan, options)
        return True

    return plan if attempt(f"build {plan.name}", action) else None


def time_plan(plan: Path, cases: list[Call], inputs: Inputs, name: str) -> dict[Call, Row]:
    """Times of one engine in all ``cases``; those of its layers after all others, which the profiler would slow."""
    times: dict[Call, Row] = {}
    with Runner(plan) as runner:
        if name != BASELINE:  # past and present have one address, as `graphopt generate` binds them
            pasts = [p.name for p in runner.inputs if p.name.startswith("past")]
            runner.share({p.replace("past_key_values", "present"): p for p in pasts})

        def fill(case: Call) -> None:
            runner.fill(inputs.shapes(case))
            if name != BASELINE:  # the cache has room for more
                runner.upload({"start": np.full(case.batch, case.past, np.int32)})

        for case in cases:
            fill(case)
            eager = latency(runner, 30)
            attempt("CUDA graph", runner.capture)
            graph = latency(runner, 50) if runner.captured else None
            times[case] = {
                "eager": asdict(eager),
                "graph": asdict(graph) if graph else None,
                "memory": asdict(runner.memory()),
            }
        for case in cases:
            fill(case)
            layers = attempt("layer times", lambda: runner.layer_times(5)) or []
            times[case] |= {
                "ops": [asdict(o) for o in by_op(layers)[:12]],
                "slowest": [asdict(layer) for layer in sorted(layers, key=lambda layer: -layer.us)[:12]],
            }
            log(f"  B={case.batch} S={case.seq} {name}: {best_of(times[case]):.0f} us, "
                + ", ".join(f"{o.op} {o.us:.0f}" for o in by_op(layers)[:6]))  # fmt: skip
    return times


def best_of(measured: Row) -> float:
    median: float = (measured["graph"] or measured["eager"])["median_us"]
    return median


def rows_of(name: str, phase: str, times: dict[Call, Row], label: str) -> list[Row]:
    """The rows of one engine."""
    scheme, cache = parts(name)
    shared = {
        "suite": "engine", "scheme": name, "phase": phase, "bits": BITS.get(scheme, 16), "cache_bits": BITS[cache],
    }  # fmt: skip
    return [
        {
            **shared, "case": f"{label} {phase} B={c.batch} S={c.seq} past={c.past}", "B": c.batch,
            "M": c.batch * c.seq, "us": best_of(measured), "measured": measured,
        }
        for c, measured in times.items()
    ]  # fmt: skip


def with_peers(rows: list[Row]) -> list[Row]:
    """The last row of each case and scheme, with every other engine as a peer."""
    last = {(row["case"], row["scheme"]): row for row in rows}
    return [
        {**row, "peers": {s: other["us"] for (c, s), other in last.items() if c == case and s != scheme}}
        for (case, scheme), row in last.items()
    ]


def wanted(arguments: argparse.Namespace) -> Iterator[tuple[str, str, list[Call]]]:
    """The plans that were asked for: phase, scheme, calls."""
    batches = [int(b) for b in arguments.batches.split(",")]
    for phase in arguments.phases.split(","):
        for name in arguments.schemes.split(","):
            yield phase, name, cases_of(phase, batches)


def build_engines(arguments: argparse.Namespace) -> bool:
    model = Model(arguments.work)
    plans = [build_phase(name, phase, cases, model, arguments.level) for phase, name, cases in wanted(arguments)]
    return all(plan is not None for plan in plans)


def measured_by(driver: str) -> Row:
    """Where a row comes from."""
    device = gpu.query()
    return {"gpu": device.gpus[0].name, "driver": driver, "cuda": device.cuda_version, **provenance()}


def time_engines(arguments: argparse.Namespace) -> bool:
    model, common = Model(arguments.work), measured_by(arguments.driver)
    rows: list[Row] = []
    deadline = time.monotonic() + arguments.seconds
    for phase, name, cases in wanted(arguments):
        if time.monotonic() > deadline:
            log(f"out of time before {name} {phase}")
            continue
        if (plan := build_phase(name, phase, cases, model, arguments.level)) is None:
            continue
        if found := attempt(name, functools.partial(time_plan, plan, cases, model.inputs(name), name)):
            level = None if name == BASELINE else arguments.level
            rows += [{**row, **common, "level": level} for row in rows_of(name, phase, found, model.label)]
            arguments.json.write_text(json.dumps(with_peers(rows), indent=1))
        if not arguments.keep:
            plan.unlink()
    return bool(rows)


def merge(arguments: argparse.Namespace) -> bool:
    rows = with_peers([row for file in arguments.files for row in json.loads(file.read_text())])
    if gpus := {r["gpu"] for r in rows} - {rows[0]["gpu"]}:
        log(f"rows of another GPU: {min(gpus)}")
        return False
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("check", "make", "build", "time", "merge"):
        verb = verbs.add_parser(name)
        if name == "merge":
            verb.add_argument("files", type=Path, nargs="+")
        else:
            verb.add_argument("--work", type=Path, required=True)
        if name not in ("make", "build"):
            verb.add_argument("--json", type=Path, required=True)
        if name == "check":
            verb.add_argument("--cases", type=Path, required=True)
        if name == "make":
            verb.add_argument("--preset", default="llama-2-7b", choices=LLAMA_PRESETS)
            verb.add_argument("--layers", type=int, default=4)
        if name == "time":
            verb.add_argument("--seconds", type=float, default=500)
            verb.add_argument("--driver", default="")
            verb.add_argument("--keep", action="store_true", help="plans, which are big, stay")
        if name in ("build", "time"):
            verb.add_argument("--phases", default="decode,prefill", help="of decode and prefill, in this order")
            verb.add_argument("--batches", default="1,4,16,64", help="of decode")
        if name in ("check", "build", "time"):
            verb.add_argument("--level", type=int, help="TensorRT's optimization level, 0 to 5; not of the baseline")
        if name in ("make", "build", "time"):
            verb.add_argument("--schemes", default=f"mixq-w4a8,mixq-w8a8,{BASELINE}", help="in this order")
    arguments = parser.parse_args()
    if arguments.verb != "merge":
        arguments.work.mkdir(parents=True, exist_ok=True)
    verbs_of = {"check": check, "make": make, "build": build_engines, "time": time_engines, "merge": merge}
    done = verbs_of[arguments.verb](arguments)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
