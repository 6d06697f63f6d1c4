"""Engines on a GPU: check them against references, and time MixQ against fp16 on Llama-7B-shaped layers.

    python benchmarks/engine.py check --cases FOLDER --work FOLDER --json FILE
    python benchmarks/engine.py make --work FOLDER [--layers 4]
    python benchmarks/engine.py time --work FOLDER --json FILE [--seconds 500]

`check` reads what benchmarks/engine_cases.py wrote. `time` builds and times what `make` wrote; it writes the JSON after
every case, starts none once ``--seconds`` have passed, and goes on where an earlier call stopped.
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
SCHEMES = ("tensorrt_fp16", "mixq-w8a8")


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
    engine_models.write_decoder(config, arguments.work / "tensorrt_fp16.onnx", outliers=0)
    log(f"make: fp16 model in {time.monotonic() - started:.0f} s")
    engine_models.optimize(arguments.work / "tensorrt_fp16.onnx", arguments.work / "mixq-w8a8.onnx", OUTLIERS)
    (arguments.work / "config.json").write_text(json.dumps(asdict(config)))
    log(f"make: both models in {time.monotonic() - started:.0f} s")
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

    def shapes(self, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        rows = (self.batch, self.seq)
        shapes: dict[str, tuple[int, ...]] = {"input_ids": rows, "position_ids": rows}
        shapes["attention_mask"] = (self.batch, self.past + self.seq)
        for i in range(config.num_hidden_layers):
            cache = (self.batch, config.num_key_value_heads, self.past, config.head_dim)
            shapes |= {f"past_key_values.{i}.{kind}": cache for kind in ("key", "value")}
        return shapes


#: The most telling first: a run may end before the last.
CASES = (
    Case("decode", 1, 1, CONTEXT),
    Case("prefill", 1, PROMPT, 0),
    Case("decode", 16, 1, CONTEXT),
    Case("decode", 4, 1, CONTEXT),
    Case("decode", 64, 1, CONTEXT),
)
#: In place of the prefill where TensorRT takes no empty cache.
PREFILL_AFTER_16 = Case("prefill", 1, PROMPT, 16)


def time_case(plan: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], np.ndarray]:
    """Times of one engine, and its logits."""
    with Runner(plan) as runner:
        runner.fill(shapes)
        eager = latency(runner, 30)
        logits = runner.outputs_now("logits")["logits"].astype(np.float64)
        attempt("CUDA graph", runner.capture)
        graph = latency(runner, 50) if runner.captured else None
        layers = attempt("layer times", lambda: runner.layer_times(5)) or []
        slowest = sorted(layers, key=lambda layer: -layer.us)[:12]
        times = {
            "eager": asdict(eager),
            "graph": asdict(graph) if graph else None,
            "memory": asdict(runner.memory()),
            "ops": [asdict(o) for o in by_op(layers)[:12]],
            "slowest": [asdict(layer) for layer in slowest],
        }
        return times, logits


def rows_of(case: Case, config: LlamaConfig, plans: dict[str, Path]) -> list[dict[str, Any]]:
    name, shapes = case.name(config), case.shapes(config)
    measured: dict[str, tuple[dict[str, Any], np.ndarray]] = {}
    for scheme, plan in plans.items():
        if result := attempt(f"{name} {scheme}", lambda p=plan: time_case(p, shapes)):
            measured[scheme] = result
    best = {s: (m["graph"] or m["eager"])["median_us"] for s, (m, _) in measured.items()}
    reference = measured.get("tensorrt_fp16")
    rows = []
    for scheme, (m, logits) in measured.items():
        peers = {s: us for s, us in best.items() if s != scheme}
        agreement = None if reference is None else error_of(logits, reference[1])
        row = {"suite": "engine", "case": name, "scheme": scheme, "phase": case.phase}
        row |= {
            "B": case.batch,
            "M": case.batch * case.seq,
            "bits": 16 if scheme.endswith("fp16") else 8,
            "us": best[scheme],
        }
        rows.append({**row, "peers": peers, "measured": m, "logits_error_to_fp16": agreement})
        log(f"  {name} {scheme}: {best[scheme]:.0f} us, logits error {agreement}, "
            + ", ".join(f"{o['op']} {o['us']:.0f}" for o in m["ops"][:6]))  # fmt: skip
    if len(best) == len(SCHEMES):
        log(f"  {name}: MixQ is {best['tensorrt_fp16'] / best['mixq-w8a8']:.2f} times as fast")
    return rows


def plans_for(case: Case, config: LlamaConfig, work: Path) -> dict[str, Path]:
    """Build the plans of ``case``; one per case, so that each has its own kernels and no profile's weights twice."""
    plans = {}
    for scheme in SCHEMES:
        plan = work / f"{scheme}.plan"
        log(f"build {case.name(config)} {scheme}")
        action = partial(build_static, work / f"{scheme}.onnx", plan, [case.shapes(config)], work / "timing.cache")
        if attempt(f"build {scheme}", action) is not None:
            plans[scheme] = plan
    return plans


def time_engines(arguments: argparse.Namespace) -> bool:
    config = LlamaConfig(**json.loads((arguments.work / "config.json").read_text()))
    device = gpu.query()
    common = {"gpu": device.gpus[0].name, "driver": arguments.driver, "cuda": device.cuda_version, **provenance()}
    if commit := os.environ.get("GRAPHOPT_COMMIT"):
        common["commit"] = commit
    kept = arguments.work / "engine.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    deadline = time.monotonic() + arguments.seconds
    for case in CASES:
        if any(r["B"] == case.batch and r["phase"] == case.phase for r in rows):
            log(f"{case.name(config)} was timed before")
            continue
        if time.monotonic() > deadline:
            log(f"out of time before {case.name(config)}")
            break
        plans = plans_for(case, config, arguments.work)
        if not plans and case.phase == "prefill":
            case = PREFILL_AFTER_16
            plans = plans_for(case, config, arguments.work)
        rows += [{**row, **common} for row in rows_of(case, config, plans)]
        for path in (kept, arguments.json):
            path.write_text(json.dumps(rows, indent=1))
    arguments.json.write_text(json.dumps(rows, indent=1))
    return bool(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("check", "make", "time"):
        verb = verbs.add_parser(name)
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
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    done = {"check": check, "make": make, "time": time_engines}[arguments.verb](arguments)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
