"""`graphopt eval`: accuracy of a model on real data."""

__all__ = ["app"]

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli import runners, sources
from graphopt.cli.console import JsonFlag, emit, guard, progress, status
from graphopt.errors import GraphOptError, nearest
from graphopt.ir.kv_cache import KvCache

app = typer.Typer(no_args_is_help=True, help="Judge a model by what it predicts.")

#: What a result file may say about the KV cache.
_KV = ("none", "cq4", "cq2", "mant4", "int8")


@app.callback()
def _group() -> None:
    """A callback keeps `ppl` a verb of its own while it is the only one."""


@app.command()
@guard
def ppl(
    model: Annotated[Path, typer.Argument(help="A decoder with input_ids and logits: an .onnx file, or a .plan.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="The original model or its plan: adds its perplexity, KL divergence and top-1 agreement."),
    ] = None,
    text: sources.TextFlag = None,
    tokenizer: sources.TokenizerFlag = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of text, spread evenly over it.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a chunk.")] = 512,
    results: Annotated[
        Path | None, typer.Option(help="A JSON list of results to update: benchmarks/results/accuracy/<model>.json.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="The scheme's name in the result.", show_default="as the model says")
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(help=f"The KV cache's name in the result: {', '.join(_KV)}.", show_default="as the model says"),
    ] = None,
    runner: runners.RunnerFlag = None,
    plugins: runners.PluginsFlag = None,
    json: JsonFlag = False,
) -> None:
    """Perplexity of a language model on text, executed from the file itself: in ONNX Runtime, or a plan on the GPU.

    Lower is better. The text scored is disjoint from what 'graphopt calibrate' reads, whatever the flags.

    Examples:

      graphopt eval ppl model.onnx

      graphopt eval ppl model.opt.onnx --reference model.onnx --chunks 32

      graphopt eval ppl model.opt.onnx --reference model.onnx --results accuracy.json

      graphopt eval ppl model.plan --tokenizer out/tokenizer.json
    """
    from graphopt.compare import perplexity
    from graphopt.compare.results import accuracy_row, record
    from graphopt.runners import open_runner

    opened = open_runner(model, runner, plugins=plugins)
    if kv is not None and kv not in _KV:
        raise GraphOptError(f"unknown --kv '{kv}'{nearest(kv, _KV)}")
    kv = kv or _kv_name(opened.cache)
    bits, quantized = _weights(model)
    scheme = scheme or opened.scheme or (None if quantized else "fp")
    if results and scheme is None:
        raise GraphOptError(f"{model} is quantized; say with which scheme: --scheme mixq-w8a8")
    with status("reading text"):
        picked = sources.corpus(text, tokenizer, model).chunks("evaluation", chunks, length)
    start = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("scoring", total=chunks)
        result = perplexity(
            opened, picked, reference=reference, progress=lambda done, total: bar.update(task, completed=done)
        )
    row = accuracy_row(result, scheme=scheme or "?", kv=kv, bits_per_weight=bits)
    if results:
        record(results, row)
    data = {**row, "chunk_nll": list(result.chunk_nll), "seconds": round(time.perf_counter() - start, 2)}
    data["runner"] = opened.note
    emit(data, json, lambda out: _render(out, data, results))


def _kv_name(cache: KvCache | None) -> str:
    """What results call a cache; one that keeps the activation type is none."""
    return "none" if cache is None or cache.kind == "static" else cache.short_name


def _weights(model: Path) -> tuple[float | None, bool]:
    """Bits per weight, and whether any weight is quantized; of a plan, as its model says if it is still there."""
    from graphopt import ir
    from graphopt.compare.linears import bits_per_weight, weight_layers
    from graphopt.core.op import custom_nodes

    if model.suffix == ".plan":
        from graphopt.engine import manifest

        described = manifest.read(model)
        source = Path(described.source.path)
        if not source.is_file():
            return None, _any_linear(described.custom_ops)
        model = source
    loaded = ir.load(model)
    return bits_per_weight(weight_layers(loaded)), _any_linear(n.op for n in custom_nodes(loaded))


def _any_linear(custom_ops: Iterable[str]) -> bool:
    """Whether a linear was lowered: other custom ops leave the weights as they are."""
    return any("Linear" in op for op in custom_ops)


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
