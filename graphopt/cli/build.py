"""`graphopt build`."""

__all__ = ["build"]

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from graphopt.cli.console import JsonFlag, console, emit, guard, progress
from graphopt.cli.plan import plan_table
from graphopt.engine.profiles import Limits
from graphopt.engine.progress import BuildStep
from graphopt.errors import EngineError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SHAPES_HELP = "shape of dynamic inputs, such as x:1x4,past*:1x3x0x64; repeat for more profiles."


@guard
def build(
    model: Annotated[Path, typer.Argument(help="The .onnx file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write; <plan>.json gets its manifest.")],
    flavour: Annotated[str | None, typer.Option(help="rtx or tensorrt; default: the best one installed.")] = None,
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    min_shapes: Annotated[list[str] | None, typer.Option(help=f"Smallest {_SHAPES_HELP}")] = None,
    opt_shapes: Annotated[list[str] | None, typer.Option(help=f"Usual {_SHAPES_HELP}")] = None,
    max_shapes: Annotated[list[str] | None, typer.Option(help=f"Largest {_SHAPES_HELP}")] = None,
    max_batch: Annotated[int, typer.Option(help="Without shapes: most sequences in a batch.")] = Limits.batch,
    max_seq: Annotated[int, typer.Option(help="Without shapes: most new tokens in a call.")] = Limits.seq,
    max_past: Annotated[int, typer.Option(help="Without shapes: most tokens in the cache.")] = Limits.past,
    workspace: Annotated[str | None, typer.Option(help="Limit on scratch memory, such as 512M or 4G.")] = None,
    opt_level: Annotated[int | None, typer.Option(help="0 builds fastest, 5 runs fastest.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File with kernel timings to reuse and extend.")] = None,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="GPU to build for, such as 8.9; repeatable; TensorRT-RTX only.")
    ] = None,
    native_fallback: Annotated[
        bool,
        typer.Option("--native-fallback", help="Let custom ops without a plugin run as their bodies in standard ops."),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Build a TensorRT plan from an ONNX file, with our plugins inside.

    Every custom node must become a plugin layer, or the build fails. TensorRT-RTX builds on machines without a GPU.

    Examples:

      graphopt build model.opt.onnx -o model.plan

      graphopt build model.opt.onnx -o model.plan --max-batch 8 --max-seq 1024 --max-past 4096

      graphopt build bert.onnx -o bert.plan --min-shapes '*:1x1' --opt-shapes '*:8x128' --max-shapes '*:32x512'
    """
    # onnx and its friends take a second to import, which --help should not.
    from graphopt import compile, ir
    from graphopt.engine.build import BuildOptions
    from graphopt.engine.build import build as build_plan

    options = BuildOptions(
        flavour=flavour,
        plugins=plugins,
        min_shapes=tuple(min_shapes or ()),
        opt_shapes=tuple(opt_shapes or ()),
        max_shapes=tuple(max_shapes or ()),
        limits=Limits(max_batch, max_seq, max_past),
        workspace_bytes=None if workspace is None else _bytes(workspace),
        optimization_level=opt_level,
        timing_cache=timing_cache,
        compute_capabilities=tuple(compute_capability or ()),
        native_fallback=native_fallback,
    )
    compile.check(ir.load(model))
    with progress() as display:
        result = build_plan(model, output, options, on_step=_Bars(display).show)
    for warning in result.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)

    def render(out: Console) -> None:
        plan_table(out, result.manifest)
        for path in (result.plan, result.manifest_path):
            out.print(str(path), soft_wrap=True, highlight=False)

    data = {"plan": str(result.plan), "manifest": str(result.manifest_path), "warnings": list(result.warnings)}
    emit({**data, **result.manifest.to_dict()}, json, render)


class _Bars:
    """One bar per running phase of a build."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def show(self, step: BuildStep) -> None:
        if step.done >= step.total:
            if (task := self._tasks.pop(step.phase, None)) is not None:
                self._display.remove_task(task)
            return
        if step.phase not in self._tasks:
            self._tasks[step.phase] = self._display.add_task(step.phase, total=step.total)
        self._display.update(self._tasks[step.phase], completed=step.done)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise EngineError(f"cannot read --workspace '{text}'; write it like 512M or 4G")
    return int(match.group(1)) * _UNITS[match.group(2).upper()]
