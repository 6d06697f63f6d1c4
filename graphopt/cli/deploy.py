"""`graphopt deploy`: from a model to a folder that a server starts from."""

__all__ = ["app"]

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from graphopt.cli import runners
from graphopt.cli.console import JsonFlag, console, emit, guard

app = typer.Typer(no_args_is_help=True, help="Write, and check, the folder that a server starts from.")


@app.command()
@guard
def triton(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="An .onnx file, or a .plan; one plan per kind of GPU.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "model",
    execution: Annotated[
        str,
        typer.Option(
            help="Of language models: ort (ONNX Runtime on the CPU), trt (graphopt's runner of plans) "
            "or bls (Triton's TensorRT backend, which batches the streams)."
        ),
    ] = "trt",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json, its folder, or a .gguf file.", show_default="tokenizer.json beside MODEL"),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Most samples, or streams, that Triton computes together.")] = 1,
    streams: Annotated[int, typer.Option(help="Texts that are made at the same time.")] = 4,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; more are refused.")] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longest prompt.")] = 1024,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens that a request gets.")] = 256,
    threads: Annotated[int, typer.Option(help="Of ONNX Runtime; 0 for all cores.")] = 0,
    plugins: runners.PluginsFlag = None,
    json: JsonFlag = False,
) -> None:
    """Write a model repository for the Triton Inference Server.

    A language model becomes a model that takes text and streams text; any other one an engine with its configuration.
    An .onnx file is built first, unless ONNX Runtime executes it.

    Examples:

      graphopt deploy triton model.plan -o repository --name smollm2 --tokenizer out

      graphopt deploy triton out/model.opt.onnx -o repository --execution ort
    """
    from graphopt.deploy.triton import RepositoryOptions, write_repository

    options = RepositoryOptions(
        name=name,
        execution=execution,
        tokenizer=tokenizer,
        max_batch=max_batch,
        plugins=plugins,
        streams=streams,
        waiting=waiting,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        threads=threads,
    )
    files = write_repository(models, output, options)
    _show_files(output, "repository", files, json)
    console.print(f"start it with: {output / 'run_triton.sh'}", highlight=False, soft_wrap=True)


@app.command("tensorrt-llm")
@guard
def tensorrt_llm(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An .onnx file optimized with mixq-w8a8 or mixq-w4a8.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    config: Annotated[
        Path | None,
        typer.Option(help="The model's Hugging Face config.json.", show_default="config.json beside MODEL"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json, its folder, or a .gguf file.", show_default="tokenizer.json beside MODEL"),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Run graph and checkpoint on some tokens, and refuse if they differ.")
    ] = True,
    plugins: runners.PluginsFlag = None,
    json: JsonFlag = False,
) -> None:
    """Write a checkpoint and a Python package for TensorRT-LLM's PyTorch flow.

    The package registers the kernels as torch ops and the decoder as a model of TensorRT-LLM; it also runs in PyTorch
    alone. Llama-family decoders, MixQ linears with calibrated outliers, one GPU.

    Example: graphopt deploy tensorrt-llm out/model.opt.onnx -o package
    """
    from graphopt.deploy.tensorrt_llm import PackageOptions, write_package

    files = write_package(model, output, PackageOptions(config, tokenizer, plugins, verify))
    _show_files(output, "folder", files, json)
    console.print(
        f"install {output / 'package'} with pip, then start {output / 'serve.sh'}", highlight=False, soft_wrap=True
    )


def _show_files(folder: Path, kind: str, files: list[Path], json: bool) -> None:
    def render(out: Console) -> None:
        for file in files:
            size = (folder / file).stat().st_size
            out.print(f"{decimal(size):>10}  {folder / file}", highlight=False, soft_wrap=True)

    emit({kind: str(folder), "files": [str(f) for f in files]}, json, render)


@app.command()
@guard
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that `deploy` wrote.")],
    json: JsonFlag = False,
) -> None:
    """Compare a folder with the digests in its graphopt.json, and a repository's configuration with its engine.

    Example: graphopt deploy check repository
    """
    from graphopt.deploy.triton import check_repository

    about = check_repository(folder)
    emit(
        about,
        json,
        lambda out: out.print(f"{len(about['files'])} files as they were written", highlight=False),
    )
