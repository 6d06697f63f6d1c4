"""`graphopt compare`."""

__all__ = ["compare"]

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Column, Table

from graphopt.cli import runners, sources
from graphopt.cli.console import JsonFlag, emit, guard, progress, status
from graphopt.compare.metrics import METRICS, Difference, Tolerance
from graphopt.compare.outputs import Comparison
from graphopt.errors import CalibrationError, ComparisonFailed, nearest


@guard
def compare(
    models: Annotated[
        list[Path], typer.Argument(help="Files to judge, .onnx or .plan, and last the one to judge them by.")
    ],
    runner: Annotated[
        list[str] | None,
        typer.Option(
            help="ort, reference or trt: for all files, or given once for each. trt builds a plan of an .onnx file.",
            show_default="trt for a .plan, else ort",
        ),
    ] = None,
    plugins: runners.PluginsFlag = None,
    text: sources.TextFlag = None,
    tokenizer: sources.TokenizerFlag = None,
    data: sources.DataFlag = None,
    random: sources.RandomFlag = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to run; of --data, at most.")] = 1,
    length: sources.LengthFlag = 128,
    metric: Annotated[
        str, typer.Option(help="What to bound: " + "; ".join(f"{k} ({v})" for k, v in METRICS.items()) + ".")
    ] = "normalized",
    rtol: Annotated[float, typer.Option(min=0, help="Relative tolerance.")] = 1e-3,
    atol: Annotated[float, typer.Option(min=0, help="Absolute tolerance.")] = 1e-5,
    per_layer: Annotated[
        bool,
        typer.Option(
            "--per-layer", help="Also compare the weight layers that both models have, and explain the first bad one."
        ),
    ] = False,
    ort_optimize: Annotated[
        bool, typer.Option(help="Let ONNX Runtime rewrite the graphs; without it, differences are of the files alone.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Run models on the same inputs and compare their outputs with the last one's; exit code 1 if they differ too much.

    a is a value of the model, b the same value of the reference. The default tolerance is for rewrites that keep the
    mathematics; after quantization expect a normalized error of a few hundredths to tenths, and give --rtol.

    Examples:

      graphopt compare model.opt.onnx model.onnx --random 0 --rtol 0.1

      graphopt compare model.opt.onnx model.onnx --per-layer --samples 4

      graphopt compare mixq.plan fp16.plan model.onnx --rtol 0.1

      graphopt compare model.opt.onnx model.opt.onnx --runner trt --runner ort --per-layer
    """
    from graphopt import ir
    from graphopt.compare.outputs import compare_models
    from graphopt.compare.side import Side

    if metric not in METRICS:
        raise CalibrationError(f"unknown --metric '{metric}'{nearest(metric, METRICS)}")
    sides = [Side(path, kind, plugins, ort_optimize) for path, kind in zip(models, _kinds(models, runner), strict=True)]
    with status("reading data"):
        flags = sources.Source(text, tokenizer, data, random, samples, length)
        described = next((s.path for s in reversed(sides) if not s.is_plan), None)
        if described is None:
            raise CalibrationError("plans alone do not say what their inputs mean; add the ONNX file as the last one")
        feeds, _ = flags.feeds(ir.load(described), described, "evaluation")
        feeds = list(sides[-1].feeds_like(Side(described), feeds))
    results = []
    with progress() as bar:
        for side in sides[:-1]:
            task = bar.add_task(f"comparing {side.path.name}", total=None)
            result = compare_models(
                side,
                sides[-1],
                feeds,
                Tolerance(metric, rtol, atol),
                per_layer=per_layer,
                progress=functools.partial(_advance, bar, task),
            )
            results.append((side.path, result))
    comparisons = [{"model": str(path), **result.to_dict()} for path, result in results]
    passed = all(result.passed for _, result in results)
    data_out = {"passed": passed, "reference": str(sides[-1].path), "comparisons": comparisons}
    emit(data_out, json, lambda out: _render(out, results))
    if not passed:
        raise ComparisonFailed("; ".join(_verdict(path, r, metric) for path, r in results if not r.passed))


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _kinds(models: list[Path], runner: list[str] | None) -> list[str | None]:
    if len(models) < 2:
        raise CalibrationError("give at least two files: those to judge, and last the one to judge them by")
    if not runner:
        return [None] * len(models)
    if len(runner) not in (1, len(models)):
        raise CalibrationError(f"--runner was given {len(runner)} times for {len(models)} files; give one, or one each")
    return [*runner] * (len(models) if len(runner) == 1 else 1)


def _verdict(path: Path, result: Comparison, metric: str) -> str:
    bad = [d.name for d in result.outputs if not d.passed]
    parts = [f"missing output '{name}'" for name in result.missing]
    if bad:
        parts.append(f"{len(bad)} of {len(result.outputs)} outputs are beyond the tolerance ({metric}): {_first(bad)}")
    return f"{path.name}: {'; '.join(parts)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _render(out: Console, results: list[tuple[Path, Comparison]]) -> None:
    for path, result in results:
        out.print(_table(f"{path.name}: outputs", "value", [(d.name, d) for d in result.outputs]))
        if result.other_form:
            out.print(
                f"{len(result.other_form)} outputs hold the cache in another format and are not compared: "
                f"{_first(result.other_form)}",
                highlight=False,
                soft_wrap=True,
            )
        if result.layers:
            out.print(_table(f"{path.name}: layers", "layer", [(d.layer, d) for d in result.layers]))
        if result.uncompared:
            out.print(
                f"{len(result.uncompared)} layers of the reference have no output of their own to compare: "
                f"{_first(result.uncompared)}",
                highlight=False,
                soft_wrap=True,
            )
        if result.culprit is not None:
            out.print(
                f"the first layer that differs is '{result.culprit.layer}': {result.culprit.cause}",
                highlight=False,
                soft_wrap=True,
            )
        count = f"{result.samples} sample" + "s" * (result.samples != 1)
        out.print(f"{count}: {'equal within the tolerance' if result.passed else 'different'}")


def _table(title: str, of: str, rows: list[tuple[str, Difference]]) -> Table:
    table = Table(Column(of, overflow="fold"), "normalized", "max |a - b|", "rms", "cosine", "", title=title)
    for name, d in rows:
        numbers = (f"{x:.3g}" for x in (d.normalized, d.max_abs, d.rms))
        verdict = d.reason or ("ok" if d.passed else "[red]differs[/red]")
        table.add_row(name, *numbers, f"{d.cosine:.6f}", verdict)
    return table
