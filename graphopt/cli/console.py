"""What every verb shares: the console, progress bars, ``--json`` and the boundary between errors and exit codes.

Everything for people goes to standard error, so that standard output holds only the JSON of ``--json`` or, without it,
the verb's result.
"""

__all__ = ["JsonFlag", "console", "emit", "guard", "progress", "status", "stdout"]

import functools
import json as jsonlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
#: Seconds between lines that say what is at work, where there is no terminal.
_EVERY = 10.0
_asked_for_json: ContextVar[bool] = ContextVar("asked_for_json", default=False)


def progress() -> Progress:
    """Return a progress display on standard error; use as a context manager.

    Bars on a terminal; elsewhere a line every ten seconds, and nothing under ``--json``.
    """
    if not console.is_interactive:
        return _Lines()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Say what is at work, as `progress` does; inside is a function that changes the text."""
    if console.is_interactive:
        with console.status(text) as shown:
            yield shown.update
        return
    with _Lines() as lines:
        task = lines.add_task(text, total=None)
        yield lambda changed: lines.update(task, description=changed)


class _Lines(Progress):
    """Progress for files and pipes, which keep every line: one for each task at work, now and then."""

    def __init__(self) -> None:
        super().__init__(console=console, disable=True)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._silent = _asked_for_json.get()

    def start(self) -> None:
        if not self._silent:
            self._thread.start()

    def stop(self) -> None:
        self._done.set()

    def _speak(self) -> None:
        while not self._done.wait(_EVERY):
            for task in self.tasks:
                if not task.finished:
                    count = "" if task.total is None else f" {task.completed:.0f} of {task.total:.0f}"
                    line = f"{task.description}{count}, {task.elapsed or 0:.0f} s"
                    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
        _asked_for_json.set(bool(kwargs.get("json")))
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
