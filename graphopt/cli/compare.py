"""`graphopt compare`."""

__all__ = ["compare"]

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from graphopt.cli import sources
from graphopt.cli.console import JsonFlag, console, emit, guard, progress
from graphopt.compare.metrics import METRICS, Difference, Tolerance
from graphopt.compare.outputs import Comparison
from graphopt.errors import CalibrationError, ComparisonFailed, nearest


@guard
def compare(
    model: Annotated[Path, typer.Argument(help="The ONNX file to judge.")],
    reference: Annotated[Path, typer.Argument(help="The ONNX file to judge it by.")],
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
        bool, typer.Option("--per-layer", help="Also compare the outputs of the weight layers that both models have.")
    ] = False,
    ort_optimize: Annotated[
        bool, typer.Option(help="Let ONNX Runtime rewrite the graphs; without it, differences are of the files alone.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Run two ONNX models on the same inputs and compare their outputs; exit code 1 if they differ too much.

    a is a value of the model, b the same value of the reference. The default tolerance is for rewrites that keep the
    mathematics; after quantization expect a normalized error of a few hundredths to tenths, and give --rtol.

    Examples:

      graphopt compare model.opt.onnx model.onnx --random 0 --rtol 0.1

      graphopt compare model.opt.onnx model.onnx --per-layer --samples 4

      graphopt compare a.onnx b.onnx --data inputs.npz --metric allclose --rtol 1e-3 --atol 1e-4
    """
    from graphopt import ir
    from graphopt.compare.outputs import compare_models

    if metric not in METRICS:
        raise CalibrationError(f"unknown --metric '{metric}'{nearest(metric, METRICS)}")
    with console.status("reading data"):
        flags = sources.Source(text, tokenizer, data, random, samples, length)
        feeds, _ = flags.feeds(ir.load(reference), reference, "evaluation")
    with progress() as bar:
        task = bar.add_task("comparing", total=None)
        result = compare_models(
            model,
            reference,
            feeds,
            Tolerance(metric, rtol, atol),
            per_layer=per_layer,
            optimize=ort_optimize,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    emit(result.to_dict(), json, lambda out: _render(out, result))
    if not result.passed:
        raise ComparisonFailed(_verdict(result, metric))


def _verdict(result: Comparison, metric: str) -> str:
    bad = [d.name for d in result.outputs if not d.passed]
    parts = [f"missing output '{name}'" for name in result.missing]
    parts += [
        f"{len(bad)} of {len(result.outputs)} outputs are beyond the tolerance ({metric}): {', '.join(bad[:3])}"
    ] * bool(bad)
    return "; ".join(parts)


def _render(out: Console, result: Comparison) -> None:
    for title, rows in (("outputs", result.outputs), ("layers", result.layers)):
        if rows:
            out.print(_table(title, rows))
    out.print(f"{result.samples} samples: {'equal within the tolerance' if result.passed else 'different'}")


def _table(title: str, rows: tuple[Difference, ...]) -> Table:
    table = Table(Column("value", overflow="fold"), "normalized", "max |a - b|", "rms", "cosine", "", title=title)
    for d in rows:
        numbers = (f"{x:.3g}" for x in (d.normalized, d.max_abs, d.rms))
        verdict = d.reason or ("ok" if d.passed else "[red]differs[/red]")
        table.add_row(d.name, *numbers, f"{d.cosine:.6f}", verdict)
    return table
