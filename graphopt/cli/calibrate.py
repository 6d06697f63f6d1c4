"""`graphopt calibrate`."""

__all__ = ["calibrate"]

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from graphopt.cli import sources
from graphopt.cli.console import JsonFlag, emit, guard, progress, status
from graphopt.core.statistics import Statistics

#: Linears shown in the table: those with the largest outliers.
_SHOWN = 10


@guard
def calibrate(
    model: Annotated[Path, typer.Argument(help="The ONNX file (with its external data beside it).")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: <model>.stats.npz.")] = None,
    text: sources.TextFlag = None,
    tokenizer: sources.TokenizerFlag = None,
    data: sources.DataFlag = None,
    random: sources.RandomFlag = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to run; of --data, at most.")] = 16,
    length: sources.LengthFlag = 512,
    second_moment: Annotated[
        bool, typer.Option("--second-moment", help="Also the K x K second moment of every input (large).")
    ] = False,
    keys_values: Annotated[
        bool, typer.Option("--keys-values", help="Also keys and values of some tokens, for caches with codebooks.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Measure the inputs of every linear layer, for 'graphopt optimize --stats'.

    The model runs in ONNX Runtime on a few samples of text, of your own data, or on random inputs; largest magnitude
    and mean square of every input channel go into a file. Text for calibration never overlaps with the text that
    'graphopt eval ppl' scores, whatever the flags. A bfloat16 model is computed in float32.

    Examples:

      graphopt calibrate model.onnx -o stats.npz

      graphopt calibrate model.onnx --text book.txt --samples 32 --length 256

      graphopt calibrate model.onnx --data inputs.npz
    """
    from graphopt import compile, ir
    from graphopt.calibrate.attention import collect_attention
    from graphopt.calibrate.collect import collect
    from graphopt.ir.files import check_target

    output = output or model.parent / f"{model.name.removesuffix('.onnx')}.stats.npz"
    check_target(output)
    start = time.perf_counter()
    loaded = ir.load(model)
    with status("reading data"):
        flags = sources.Source(text, tokenizer, data, random, samples, length)
        feeds, source = flags.feeds(loaded, model, "calibration")
        compile.canonicalize(loaded)
    with progress() as bar:
        task = bar.add_task("calibrating", total=None)
        statistics = collect(
            loaded,
            feeds,
            second_moment=second_moment,
            source={**source, "samples": len(feeds), "model": model.name},
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        if keys_values:
            task = bar.add_task("keys and values", total=None)
            statistics.attentions = collect_attention(
                loaded, feeds, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
    statistics.save(output)
    summary = {
        "file": str(output),
        "linears": len(statistics.linears),
        "attentions": len(statistics.attentions),
        "tokens": max(entry.tokens for entry in statistics.linears.values()),
        "source": statistics.source,
        "seconds": round(time.perf_counter() - start, 2),
    }
    emit(summary, json, lambda out: _render(out, statistics, summary))


def _render(out: Console, statistics: Statistics, data: dict[str, object]) -> None:
    worst = sorted(statistics.linears.items(), key=lambda item: -item[1].absmax.max() / (item[1].rms or 1))
    table = Table(
        Column("linear", overflow="fold"), "channels", "max |x|", "rms", "channels > 6 rms", title="largest outliers"
    )
    for name, entry in worst[:_SHOWN]:
        beyond = int((entry.absmax > 6 * entry.rms).sum())
        table.add_row(name, str(entry.channels), f"{entry.absmax.max():.4g}", f"{entry.rms:.4g}", str(beyond))
    out.print(table)
    out.print(
        f"wrote {data['file']}: {data['linears']} linears, {data['tokens']} tokens, {data['seconds']} s", soft_wrap=True
    )
