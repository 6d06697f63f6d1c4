"""`graphopt eval`: accuracy of a model on real data."""

__all__ = ["app"]

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli import sources
from graphopt.cli.console import JsonFlag, console, emit, guard, progress
from graphopt.errors import GraphOptError, nearest

app = typer.Typer(no_args_is_help=True, help="Judge a model by what it predicts.")

#: What a result file may say about the KV cache.
_KV = ("none", "cq4", "cq2", "mant4", "int8")


@app.callback()
def _group() -> None:
    """A callback keeps `ppl` a verb of its own while it is the only one."""


@app.command()
@guard
def ppl(
    model: Annotated[Path, typer.Argument(help="ONNX file of a decoder with input_ids and logits.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="The original ONNX file: adds its perplexity, KL divergence and top-1 agreement."),
    ] = None,
    text: sources.TextFlag = None,
    tokenizer: sources.TokenizerFlag = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of text, spread evenly over it.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a chunk.")] = 512,
    results: Annotated[
        Path | None, typer.Option(help="A JSON list of results to update: benchmarks/results/accuracy/<model>.json.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="The scheme's name in the result; 'fp' where no weight is quantized.")
    ] = None,
    kv: Annotated[str, typer.Option(help=f"The KV cache's name in the result: {', '.join(_KV)}.")] = "none",
    json: JsonFlag = False,
) -> None:
    """Perplexity of a language model on text, executed from the file itself in ONNX Runtime.

    Lower is better. The text scored is disjoint from what 'graphopt calibrate' reads, whatever the flags.

    Examples:

      graphopt eval ppl model.onnx

      graphopt eval ppl model.opt.onnx --reference model.onnx --chunks 32

      graphopt eval ppl model.opt.onnx --reference model.onnx --scheme mixq-w8a8 --results accuracy.json
    """
    from graphopt import ir
    from graphopt.compare import perplexity
    from graphopt.compare.linears import bits_per_weight, weight_layers
    from graphopt.compare.results import accuracy_row, record
    from graphopt.core.op import custom_nodes

    if kv not in _KV:
        raise GraphOptError(f"unknown --kv '{kv}'{nearest(kv, _KV)}")
    loaded = ir.load(model)
    scheme = scheme or ("fp" if not custom_nodes(loaded) else None)
    if results and scheme is None:
        raise GraphOptError(f"{model} is quantized; say with which scheme: --scheme mixq-w8a8")
    bits = bits_per_weight(weight_layers(loaded))
    with console.status("reading text"):
        picked = sources.corpus(text, tokenizer, model).chunks("evaluation", chunks, length)
    start = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("scoring", total=chunks)
        result = perplexity(
            model, picked, reference=reference, progress=lambda done, total: bar.update(task, completed=done)
        )
    row = accuracy_row(result, scheme=scheme or "?", kv=kv, bits_per_weight=bits)
    if results:
        record(results, row)
    data = {**row, "chunk_nll": list(result.chunk_nll), "seconds": round(time.perf_counter() - start, 2)}
    emit(data, json, lambda out: _render(out, data, results))


def _render(out: Console, data: dict[str, Any], results: Path | None) -> None:
    table = Table("", "", show_header=False)
    names = {
        "ppl": "perplexity",
        "ppl_fp32": "of the reference",
        "kl": "KL divergence (nats)",
        "top1_agreement": "top-1",
    }
    names |= {"bits_per_weight": "bits per weight", "tokens": "tokens scored", "seconds": "seconds"}
    for key, name in names.items():
        if (value := data[key]) is not None:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    out.print(table)
    if results:
        out.print(f"updated {results}", soft_wrap=True)
