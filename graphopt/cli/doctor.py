"""`graphopt doctor`."""

__all__ = ["doctor"]

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphopt.cli.console import JsonFlag, emit, guard
from graphopt.engine.doctor import Diagnosis, Status, examine
from graphopt.passes import OPS

_STYLES = {Status.OK: "green", Status.NOTE: "yellow", Status.ERROR: "red"}


@guard
def doctor(
    flavour: Annotated[str | None, typer.Option(help="rtx or tensorrt; default: the best one installed.")] = None,
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    json: JsonFlag = False,
) -> None:
    """Check what this machine has for building and running engines, and say what to do about the rest.

    Exit code 1 if something that building engines needs is missing or broken.

    Examples:

      graphopt doctor

      graphopt doctor --flavour tensorrt --plugins build/plugins/libgraphopt_plugins.so
    """
    diagnosis = examine(flavour, plugins, [op.name for op in OPS if op.plugin])
    emit(diagnosis.to_dict(), json, lambda out: _draw(out, diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _draw(out: Console, diagnosis: Diagnosis) -> None:
    table = Table("", "", "found")
    for check in diagnosis.checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n{check.advice}", style=_STYLES[check.status])
        table.add_row(check.name, Text(check.status.value, style=_STYLES[check.status]), found)
    out.print(table)
