"""The `graphopt` command."""

__all__ = ["app", "main"]

import typer

from graphopt import __version__
from graphopt.cli import bench, build, calibrate, compare, doctor, eval, inspect, model, optimize, run

app = typer.Typer(
    name="graphopt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rewrite an ONNX transformer with MixQ, check its accuracy, and build a TensorRT engine from it.\n\n"
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


for verb in (
    optimize.optimize,
    calibrate.calibrate,
    inspect.inspect,
    compare.compare,
    build.build,
    run.run,
    doctor.doctor,
):
    app.command()(verb)
app.add_typer(bench.app, name="bench")
app.add_typer(eval.app, name="eval")
app.add_typer(model.app, name="model")


def main() -> None:
    """Entry point of the console script."""
    app()
