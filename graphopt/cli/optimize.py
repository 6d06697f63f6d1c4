"""`graphopt optimize`."""

__all__ = ["optimize"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.console import JsonFlag, emit, guard, status
from graphopt.cli.tables import findings_table, linear_counts, size_table
from graphopt.core.cache import CacheFormat
from graphopt.core.scheme import Scheme
from graphopt.passes import CACHES, SCHEMES


def _listed(catalogue: Mapping[str, Scheme] | Mapping[str, CacheFormat]) -> str:
    """Return the presets of a catalogue, in its order."""
    return ", ".join(preset for entry in catalogue.values() for preset in entry.presets)


@guard
def optimize(
    model: Annotated[Path, typer.Argument(help="The ONNX file (with its external data beside it).")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: <model>.opt.onnx.")] = None,
    scheme: Annotated[str, typer.Option(help=f"A preset: {_listed(SCHEMES)}; or none.")] = "mixq-w8a8",
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe instead of a preset.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of linears that stay as they are (repeatable; with a preset).")
    ] = None,
    from_profile: Annotated[
        Path | None,
        typer.Option(help="JSON of 'graphopt bench engine --baseline': what was slower there stays as it is."),
    ] = None,
    stats: Annotated[Path | None, typer.Option(help="Statistics made by 'graphopt calibrate'.")] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(help=f"Update the key-value cache in place, in a format: {_listed(CACHES)}.", show_default=False),
    ] = None,
    kv_capacity: Annotated[
        int | None, typer.Option(help="Tokens that the cache holds for a sequence; default: dynamic.", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be rewritten and what not, and why.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Threads or processes that quantize at a time; default: processors, or OMP_NUM_THREADS, at most 16.",
            min=1,
            show_default=False,
        ),
    ] = None,
    dump_ir: Annotated[Path | None, typer.Option(help="Write the IR text after every stage into this folder.")] = None,
    json: JsonFlag = False,
) -> None:
    """Rewrite an ONNX model with a quantization scheme.

    The result is one ONNX file that runs in ONNX Runtime as it is (every custom op carries its definition as a
    model-local function) and in TensorRT with our plugins.

    What stays as it is, is listed with its reason. Where no linear can go through the scheme, or the cache cannot be
    updated in place, nothing is written and the exit code is 2.

    Examples:

      graphopt optimize model.onnx --dry-run

      graphopt optimize model.onnx --stats stats.npz -o model.opt.onnx

      graphopt optimize model.onnx --scheme mixq-w4a8 --stats stats.npz --exclude '*lm_head*'

      graphopt optimize model.onnx --scheme none --kv-cache static
    """
    from graphopt import compile, ir
    from graphopt.core.recipe import Recipe
    from graphopt.core.statistics import Statistics
    from graphopt.errors import RecipeError
    from graphopt.ir.files import check_target

    if recipe and exclude:
        raise RecipeError("--exclude works with a preset; in a recipe, write a layer with 'scheme: none' first")
    rules = Recipe.load(recipe, SCHEMES, CACHES) if recipe else Recipe.preset(scheme, SCHEMES, exclude or ())
    if kv_cache:
        rules = rules.with_cache(kv_cache, {} if kv_capacity is None else {"capacity": kv_capacity}, CACHES)
    elif kv_capacity is not None:
        raise RecipeError("--kv-capacity needs --kv-cache, such as --kv-cache static")
    if from_profile:
        from graphopt.engine.measure import read_slower

        rules = rules.excluding(read_slower(from_profile))
    statistics = Statistics.load(stats) if stats else None
    output = output or model.parent / f"{model.name.removesuffix('.onnx')}.opt.onnx"
    if not dry_run:
        check_target(output)
    loaded = ir.load(model)
    before = size_table(loaded)
    with status("loading") as say:
        report = compile.optimize(
            loaded,
            rules,
            statistics,
            dry_run=dry_run,
            strict=not dry_run,
            jobs=jobs,
            dump_dir=dump_ir,
            progress=say,
        )
        say("saving")
        files = [] if dry_run else ir.save(loaded, output)
    after = size_table(loaded)
    sizes = {"before": before, "after": after, "linears": linear_counts(report)}
    data = {"files": [str(f) for f in files], **sizes, **report.to_dict()}
    emit(data, json, lambda out: findings_table(out, report, before, after, files, dry_run=dry_run))
