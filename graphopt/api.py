"""The public functions behind ``import graphopt``."""

__all__ = ["load", "optimize", "save"]

import os
from pathlib import Path

from graphopt import compile
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.ir import Model, load, save
from graphopt.passes import CACHES, SCHEMES

PathLike = str | os.PathLike[str]


def optimize(
    model: Model,
    recipe: str | Path | Recipe = "mixq-w8a8",
    *,
    statistics: PathLike | Statistics | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
) -> Report:
    """Rewrite ``model`` in place.

    Args:
        model: of `load`.
        recipe: the name of a preset, the path of a YAML recipe (pathlib.Path), or a Recipe.
        statistics: a file of ``graphopt calibrate``, or what it holds; None to do without calibration.
        dry_run: only report what would be done.
        jobs: threads or processes that quantize at a time; the result does not depend on it. Default: as many as there
            are processors, or `OMP_NUM_THREADS`, sixteen at most.

    Returns:
        What was rewritten and what was not, with reasons.

    Raises:
        GraphOptError: model, recipe and statistics do not fit each other, or nothing of what the recipe asks for can be
            done.
    """
    if isinstance(recipe, Path):
        recipe = Recipe.load(recipe, SCHEMES, CACHES)
    elif isinstance(recipe, str):
        recipe = Recipe.preset(recipe, SCHEMES)
    if statistics is not None and not isinstance(statistics, Statistics):
        statistics = Statistics.load(Path(statistics))
    return compile.optimize(model, recipe, statistics, dry_run=dry_run, strict=not dry_run, jobs=jobs)
