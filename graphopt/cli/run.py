"""`graphopt run`."""

__all__ = ["run"]

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli.console import JsonFlag, emit, guard

_PREVIEW = 4


@guard
def run(
    plan: Annotated[Path, typer.Argument(help="A .plan file with its manifest beside it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the outputs to this .npz.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz of arrays named like the plan's inputs.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Seeded random inputs instead of data.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    shapes: Annotated[
        str | None, typer.Option(help="Shapes of random inputs, such as x:1x4; default: the usual ones.")
    ] = None,
    profile: Annotated[int, typer.Option(min=0, help="Whose usual shapes to take for random inputs.")] = 0,
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Run through a CUDA graph.")] = False,
    json: JsonFlag = False,
) -> None:
    """Run a plan once on the GPU.

    Examples:

      graphopt run model.plan --random

      graphopt run model.plan --data inputs.npz -o outputs.npz
    """
    from graphopt.engine.npz import read_npz, write_npz
    from graphopt.engine.ports import random_inputs
    from graphopt.engine.profiles import parse_shapes
    from graphopt.engine.run import Runner
    from graphopt.errors import EngineError

    if (data is None) != random:
        raise EngineError("give either --data FILE or --random")
    with Runner(plan, plugins) as runner:
        if data is not None:
            feeds = read_npz(data)
        else:
            wanted = runner.shapes(parse_shapes(shapes, "--shapes") if shapes else None, profile)
            feeds = random_inputs(runner.inputs, wanted, seed)
        outputs = runner.infer(feeds, cuda_graph=cuda_graph)
        if output is not None:
            write_npz(output, outputs)
    rows = [
        {"name": name, "dtype": str(a.dtype), "shape": list(a.shape), "first": a.ravel()[:_PREVIEW].tolist()}
        for name, a in outputs.items()
    ]

    def render(out: Console) -> None:
        table = Table("output", "type", "shape", "first values")
        for row in rows:
            table.add_row(*(str(row[column]) for column in ("name", "dtype", "shape", "first")))
        out.print(table)

    emit({"plan": str(plan), "outputs": rows, "file": None if output is None else str(output)}, json, render)
