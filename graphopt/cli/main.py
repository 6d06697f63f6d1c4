"""The `graphopt` command."""

__all__ = ["app", "main"]

import importlib
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from graphopt import __version__

#: In the order of the help. Each is the function or the group `app` of the module of its name in graphopt.cli.
_VERBS = (
    "optimize", "calibrate", "inspect", "explain", "compare", "build", "run", "generate", "deploy", "doctor", "bench",
    "eval", "estimate", "model",
)  # fmt: skip


class _Verbs(Mapping[str, Any]):
    """Commands by name. A module is imported when its verb is asked for: a verb needs what it uses itself, no more, so
    that `bench` runs on a GPU host without the compiler's packages."""

    def __getitem__(self, name: str) -> Any:
        if name not in _VERBS:
            raise KeyError(name)
        module = importlib.import_module(f"graphopt.cli.{name}")
        if hasattr(module, "app"):
            group = typer.main.get_group(module.app)
            group.name = name
            return group
        single = typer.Typer(add_completion=False)
        single.command(name)(getattr(module, name))
        return typer.main.get_command(single)

    def __iter__(self) -> Iterator[str]:
        return iter(_VERBS)

    def __len__(self) -> int:
        return len(_VERBS)


class _Group(TyperGroup):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands = _Verbs()  # type: ignore[assignment]


app = typer.Typer(
    name="graphopt",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rewrite an ONNX transformer with MixQ, VQ-LLM or M-ANT, check its accuracy, and build a TensorRT engine "
    "from it.\n\n"
    "A first tour:\n\n"
    "  graphopt model smollm2 -o out                    an ONNX model to play with\n\n"
    "  graphopt calibrate out/model.onnx -o out/stats.npz\n\n"
    "  graphopt optimize out/model.onnx -o out/model.opt.onnx --stats out/stats.npz\n\n"
    "  graphopt eval ppl out/model.opt.onnx --reference out/model.onnx\n\n"
    "  graphopt build out/model.opt.onnx -o out/model.plan",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what is half-written goes
        signal.signal(ending, signal.default_int_handler)
    app()
