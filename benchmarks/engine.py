"""Engines on a GPU: check them against references, and time MixQ against fp16 on Llama-7B-shaped layers.

    python benchmarks/engine.py check --cases FOLDER --work FOLDER --json FILE
    python benchmarks/engine.py make --work FOLDER [--layers 4]
    python benchmarks/engine.py time --work FOLDER --json FILE [--seconds 500]
    python benchmarks/engine.py merge FILE [FILE ...] --json FILE

`check` reads what benchmarks/engine_cases.py wrote. `time` builds and times what `make` wrote, one plan per scheme and
phase; it writes the JSON after every plan and starts none once ``--seconds`` have passed. `merge` makes one file of
several runs of `time`, of which each may have built some of the plans: the last row of a case and scheme counts.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import engine_models
import numpy as np

from graphopt.engine import gpu
from graphopt.engine.build import BuildOptions, build
from graphopt.engine.measure import by_op, latency
from graphopt.engine.run import Runner
from graphopt.errors import GraphOptError
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.presets import llama_config
from graphopt.results import provenance

#: Share of int8 codes that may differ by one step (see tests/contract/test_ops.py).
BOUNDARY_CODES = 0.01
CONTEXT, PROMPT = 2048, 2048
OUTLIERS = 128
BASELINE = "tensorrt_fp16"
#: Name in the results -> the scheme that makes it; all but the baseline update their cache in place.
SCHEMES = {BASELINE: None, "fp16-static": "none", "mixq-w8a8": "mixq-w8a8", "mixq-w4a8": "mixq-w4a8"}
BITS = {BASELINE: 16, "fp16-static": 16, "mixq-w8a8": 8, "mixq-w4a8": 4}


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def shapes_text(shapes: dict[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def build_static(model: Path, plan: Path, profiles: list[dict[str, tuple[int, ...]]], cache: Path) -> float:
    """Build with one profile per entry of ``profiles``, each for exactly those shapes; return the seconds."""
    texts = tuple(map(shapes_text, profiles)) if profiles and profiles[0] else ()
    started = time.monotonic()
    result = build(model, plan, BuildOptions(flavour="tensorrt", opt_shapes=texts, timing_cache=cache))
    seconds = time.monotonic() - started
    for warning in result.warnings[:8]:
        log(f"  warning: {warning[:200]}")
    log(f"  {plan.name}: {seconds:.0f} s, {result.manifest.plan_bytes / 1e6:.0f} MB, "
        f"{result.manifest.plugin_layers} plugin layers")  # fmt: skip
    return seconds


# -- check


def error_of(got: np.ndarray, want: np.ndarray) -> float:
    """Normalized error; for int8 codes, the share that differs, infinite if by more than a step."""
    if want.dtype == np.int8:
        # TensorRT 8 hands INT8 over as INT32, four to an element.
        codes = got.view(np.int8).reshape(want.shape) if got.dtype == np.int32 else got
        difference = np.abs(codes.astype(np.int32) - want.astype(np.int32))
        return float("inf") if difference.max(initial=0) > 1 else float(difference.astype(bool).mean())
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = ~np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), ~same):
        return float("inf")
    a, b = np.where(same, 0, a), np.where(same, 0, b)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def packed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.int32) if array.dtype == np.int8 else array


def check_case(data: Path, model: Path, work: Path) -> list[dict[str, Any]]:
    arrays = dict(np.load(data))
    feeds = {k[3:]: packed(v) for k, v in arrays.items() if k.startswith("in.")}
    dynamic = not data.stem.startswith("ops_")
    plan = work / f"{data.stem}.plan"
    build_static(model, plan, [{k: v.shape for k, v in feeds.items()}] if dynamic else [], work / "check.cache")
    rows = []
    with Runner(plan) as runner:
        for graph in (False, True):
            outputs = runner.infer(feeds, cuda_graph=graph)
            for name, got in outputs.items():
                want = arrays[f"out.{name}"]
                limit = BOUNDARY_CODES if want.dtype == np.int8 else float(arrays[f"limit.{name}"])
                error = error_of(got, want)
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
        found = attempt(data.stem, lambda d=data, m=model: check_case(d, m, arguments.work))
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


def make(arguments: argparse.Namespace) -> bool:
    config = replace(llama_config("llama-2-7b"), num_hidden_layers=arguments.layers, vocab_size=512)
    started = time.monotonic()
    source = arguments.work / f"{BASELINE}.onnx"
    engine_models.write_decoder(config, source, outliers=0)
    log(f"make: fp16 model in {time.monotonic() - started:.0f} s")
    for name, scheme in SCHEMES.items():
        if name != BASELINE:
            engine_models.optimize(source, arguments.work / f"{name}.onnx", OUTLIERS, scheme=scheme, cache="static")
            log(f"make: {name} after {time.monotonic() - started:.0f} s")
    (arguments.work / "config.json").write_text(json.dumps(asdict(config)))
    return True


@dataclass(frozen=True)
class Case:
    """One call of the decoder: ``seq`` new tokens for each of ``batch`` sequences with ``past`` tokens in the cache."""

    phase: str
    batch: int
    seq: int
    past: int

    def name(self, config: LlamaConfig) -> str:
        layers = config.num_hidden_layers
        return f"llama-2-7b {layers} layers {self.phase} B={self.batch} S={self.seq} past={self.past}"

    def shapes(self, config: LlamaConfig, *, growing: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs; a cache that is updated in place holds the new tokens too."""
        rows, total = (self.batch, self.seq), self.past + self.seq
        shapes: dict[str, tuple[int, ...]] = {"input_ids": rows}
        if growing:
            shapes |= {"position_ids": rows, "attention_mask": (self.batch, total)}
        else:
            shapes["start"] = (self.batch,)
        cache = (self.batch, config.num_key_value_heads, self.past if growing else total, config.head_dim)
        for i in range(config.num_hidden_layers):
            shapes |= {f"past_key_values.{i}.{kind}": cache for kind in ("key", "value")}
        return shapes


#: The most telling first: a run may end before the last.
CASES = {
    "decode": [Case("decode", batch, 1, CONTEXT) for batch in (1, 16, 4, 64)],
    "prefill": [Case("prefill", 1, PROMPT, 0)],
}
#: In place of the prefill where TensorRT takes no empty cache.
PREFILL_AFTER_16 = [Case("prefill", 1, PROMPT, 16)]


def build_phase(name: str, cases: list[Case], config: LlamaConfig, work: Path) -> Path | None:
    """One plan for all ``cases``, tuned for the batch in the middle of them."""
    plan = work / f"{name}.{cases[0].phase}.plan"
    growing = name == BASELINE
    ordered = sorted(cases, key=lambda c: c.batch)
    low, usual, high = (
        shapes_text(c.shapes(config, growing=growing)) for c in (ordered[0], ordered[len(cases) // 2], ordered[-1])
    )
    log(f"build {plan.name}")

    def action() -> float:
        started = time.monotonic()
        options = BuildOptions(
            flavour="tensorrt", min_shapes=(low,), opt_shapes=(usual,), max_shapes=(high,),
            timing_cache=work / "timing.cache",
        )  # fmt: skip
        result = build(work / f"{name}.onnx", plan, options)
        log(f"  {plan.name}: {time.monotonic() - started:.0f} s, {result.manifest.plan_bytes / 1e6:.0f} MB, "
            f"{result.manifest.plugin_layers} plugin layers")  # fmt: skip
        return result.manifest.build_seconds

    return plan if attempt(f"build {plan.name}", action) is not None else None


def time_plan(plan: Path, cases: list[Case], config: LlamaConfig, name: str) -> dict[Case, dict[str, Any]]:
    """Times of one engine in all ``cases``."""
    growing = name == BASELINE
    times: dict[Case, dict[str, Any]] = {}
    with Runner(plan) as runner:
        pasts = [p.name for p in runner.inputs if p.name.startswith("past")]
        if not growing:  # past and present have one address, as `graphopt generate` binds them
            runner.share({p.replace("past_key_values", "present"): p for p in pasts})
        for case in cases:
            runner.fill(case.shapes(config, growing=growing))
            eager = latency(runner, 30)
            attempt("CUDA graph", runner.capture)
            graph = latency(runner, 50) if runner.captured else None
            layers = attempt("layer times", lambda: runner.layer_times(5)) or []
            times[case] = {
                "eager": asdict(eager),
                "graph": asdict(graph) if graph else None,
                "memory": asdict(runner.memory()),
                "ops": [asdict(o) for o in by_op(layers)[:12]],
                "slowest": [asdict(layer) for layer in sorted(layers, key=lambda layer: -layer.us)[:12]],
            }
            best = (graph or eager).median_us
            log(f"  {case.name(config)} {name}: {best:.0f} us, "
                + ", ".join(f"{o.op} {o.us:.0f}" for o in by_op(layers)[:6]))  # fmt: skip
    return times


def rows_of(times: dict[str, dict[Case, dict[str, Any]]], config: LlamaConfig) -> list[dict[str, Any]]:
    """The rows of one phase, with every other engine as a peer."""
    rows = []
    best = {
        (name, case): (m["graph"] or m["eager"])["median_us"] for name, of in times.items() for case, m in of.items()
    }
    for (name, case), us in best.items():
        peers = {other: t for (other, c), t in best.items() if c == case and other != name}
        rows.append({
            "suite": "engine", "case": case.name(config), "scheme": name, "phase": case.phase, "B": case.batch,
            "M": case.batch * case.seq, "bits": BITS[name], "us": us, "peers": peers, "measured": times[name][case],
        })  # fmt: skip
    return rows


def time_engines(arguments: argparse.Namespace) -> bool:
    config = LlamaConfig(**json.loads((arguments.work / "config.json").read_text()))
    device = gpu.query()
    common = {"gpu": device.gpus[0].name, "driver": arguments.driver, "cuda": device.cuda_version, **provenance()}
    if commit := os.environ.get("GRAPHOPT_COMMIT"):
        common["commit"] = commit
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + arguments.seconds
    for phase in arguments.phases.split(","):
        times: dict[str, dict[Case, dict[str, Any]]] = {}
        # The quick builds first, so that a run that is cut off has timed our engines at least.
        for name in [s for s in reversed(SCHEMES) if s in arguments.schemes.split(",")]:
            if time.monotonic() > deadline:
                log(f"out of time before {name} {phase}")
                break
            cases = CASES[phase]
            plan = build_phase(name, cases, config, arguments.work)
            if plan is None and phase == "prefill":
                cases = PREFILL_AFTER_16
                plan = build_phase(name, cases, config, arguments.work)
            if plan and (found := attempt(name, partial(time_plan, plan, cases, config, name))):
                times[name] = found
                plan.unlink()
                current = [{**row, **common} for row in rows_of(times, config)]
                arguments.json.write_text(json.dumps(rows + current, indent=1))
        rows += [{**row, **common} for row in rows_of(times, config)]
    return bool(rows)


def merge(arguments: argparse.Namespace) -> bool:
    rows = {(r["case"], r["scheme"]): r for file in arguments.files for r in json.loads(file.read_text())}
    if gpus := {r["gpu"] for r in rows.values()} - {next(iter(rows.values()))["gpu"]}:
        log(f"rows of another GPU: {min(gpus)}")
        return False
    for (case, scheme), row in rows.items():
        row["peers"] = {other: r["us"] for (c, other), r in rows.items() if c == case and other != scheme}
    arguments.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("check", "make", "time", "merge"):
        verb = verbs.add_parser(name)
        if name == "merge":
            verb.add_argument("files", type=Path, nargs="+")
        else:
            verb.add_argument("--work", type=Path, required=True)
        if name != "make":
            verb.add_argument("--json", type=Path, required=True)
        if name == "check":
            verb.add_argument("--cases", type=Path, required=True)
        if name == "make":
            verb.add_argument("--layers", type=int, default=4)
        if name == "time":
            verb.add_argument("--seconds", type=float, default=500)
            verb.add_argument("--driver", default="")
            verb.add_argument("--schemes", default=",".join(SCHEMES), help="of those that make has written")
            verb.add_argument("--phases", default="decode,prefill", help="of decode and prefill, in this order")
    arguments = parser.parse_args()
    if arguments.verb != "merge":
        arguments.work.mkdir(parents=True, exist_ok=True)
    done = {"check": check, "make": make, "time": time_engines, "merge": merge}[arguments.verb](arguments)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
