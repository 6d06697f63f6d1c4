"""What every verb shares: the console, progress bars, ``--json`` and the boundary between errors and exit codes.

Everything for people goes to standard error, so that standard output holds only the JSON of ``--json`` or, without it,
the verb's result.
"""

__all__ = ["JsonFlag", "console", "emit", "guard", "progress", "stdout"]

import functools
import json as jsonlib
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from graphopt.errors import ComparisonFailed, GraphOptError

#: For people: progress, tables of work in hand, errors.
console = Console(stderr=True)
#: For results.
stdout = Console()

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


def progress() -> Progress:
    """Return a progress display on standard error; use as a context manager."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def emit(data: dict[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
    """Print a verb's result: ``data`` as JSON, or what ``render`` draws."""
    if as_json:
        sys.stdout.write(jsonlib.dumps(data, indent=2, default=str) + "\n")
    else:
        render(stdout)


def guard(verb: Callable[P, R]) -> Callable[P, R]:
    """Turn exceptions into exit codes: 2 for the user's errors, 1 for failed comparisons, 70 for ours."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except GraphOptError as e:
            console.print("[red]error:[/red]", Text(str(e)), soft_wrap=True)
            raise typer.Exit(e.exit_code) from None
        except ComparisonFailed as e:
            console.print("[red]failed:[/red]", Text(str(e)), soft_wrap=True)
            raise typer.Exit(e.exit_code) from None
        except KeyboardInterrupt:
            console.print("interrupted; nothing half-written was left")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as e:
            # Ours, whatever its class: an exit code of 1 would say that a comparison failed.
            console.print(traceback.format_exc(), highlight=False, markup=False)
            message = Text(f"{e}\nThis is a bug in graphopt; please report it.")
            console.print("[red]internal error:[/red]", message, soft_wrap=True)
            raise typer.Exit(70) from None

    return wrapped
