"""The compiler on one screen: the ordered stages that turn an ONNX model into an optimized one.

load -> infer shapes -> canonicalize -> key-value cache -> schemes -> norms and activations between plugin ops
  -> legalize what is left -> attach bodies -> save
"""

__all__ = ["canonicalize", "check", "optimize"]

from collections.abc import Callable, Sequence
from pathlib import Path

from graphopt.core import pipeline
from graphopt.core.canonical import inner_linears, linears
from graphopt.core.integrity import check_constants
from graphopt.core.jobs import at_most
from graphopt.core.op import attach_bodies
from graphopt.core.pipeline import Stage
from graphopt.core.recipe import Recipe
from graphopt.core.report import Finding, Report
from graphopt.core.statistics import Statistics
from graphopt.errors import ModelError
from graphopt.ir import origin
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.passes import CACHES, CANONICALIZE, OPS, SCHEMES, fused, kvcache, legalize
from graphopt.passes.canonicalize import PRODUCT_RULES

_INFER = Stage("infer-shapes", lambda model, report: infer_shapes(model))
#: Merged decoders, of prompts and of single tokens, are such models.
_INNER = "it lies in a branch of an If or in a loop; export the model without one, such as a decoder that is not merged"
#: Stages in which schemes say what they do.
_LOWERING = frozenset(("lower", *(f"lower-{name}" for name in SCHEMES)))
_ATTACH = Stage("attach-bodies", lambda model, report: attach_bodies(model, OPS))


def _without_linears(model: Model) -> str:
    scheme = origin.read(model.shell.metadata_props)
    if scheme is None:
        return "found no linear layer to quantize"
    return f"its linears went through '{scheme}' before; optimize the file that it was made from for another scheme"


def _reasons(findings: Sequence[Finding]) -> str:
    """Say why stages have left alone what they were to change: the two reasons of most nodes, with one of these."""
    nodes: dict[str, list[str]] = {}
    for f in [f for f in findings if f.status == "skipped"] or [f for f in findings if f.status == "note"]:
        nodes.setdefault(f.reason, []).append(f.node)
    most = sorted(nodes, key=lambda reason: -len(nodes[reason]))[:2]
    more = {reason: f" (and {len(nodes[reason]) - 1} more)" if len(nodes[reason]) > 1 else "" for reason in most}
    return ", and ".join(f"'{nodes[reason][0]}'{more[reason]}: {reason}" for reason in most)


def canonicalize(
    model: Model,
    report: Report | None = None,
    *,
    dump_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Bring ``model`` into canonical form, in place: exporters' spellings become Linear, RMSNorm, Attention, ...

    Args:
        model: as loaded.
        report: to add findings to.
        dump_dir, progress: as `graphopt.core.pipeline.run` takes them.
    """
    return pipeline.run(model, [_INFER, *CANONICALIZE, _ATTACH], report=report, dump_dir=dump_dir, progress=progress)


def check(model: Model) -> None:
    """Check what the custom ops of an optimized model hold, where a damaged file would mislead a kernel.

    Raises:
        ModelError: a tensor holds what no scheme writes.
    """
    check_constants(model, OPS)


def optimize(
    model: Model,
    recipe: Recipe,
    statistics: Statistics | None = None,
    *,
    dry_run: bool = False,
    strict: bool = False,
    jobs: int | None = None,
    dump_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Rewrite ``model`` with the schemes of ``recipe``, in place.

    Args:
        model: as loaded.
        recipe: which linears get which scheme.
        statistics: of `graphopt calibrate`; None leaves schemes to what they can do without.
        dry_run: report what would be done; only the canonical form is made (in memory).
        strict: raise where nothing of what the recipe asks for can be done: no linear goes through a scheme, or the
            key-value cache stays as it is. Otherwise only the report says so.
        jobs: threads or processes that quantize at a time; None for what `graphopt.core.jobs.count` says.
        dump_dir, progress: as `graphopt.core.pipeline.run` takes them.

    Raises:
        GraphOptError: the model, the recipe and the statistics do not fit each other.
    """

    def lower(model: Model, report: Report) -> None:
        measured = statistics.source.get("model") if statistics is not None else None
        if measured is not None and model.path is not None and measured != model.path.name:
            report.note(
                "lower", "statistics", model.path.name, f"the statistics were measured on another file, '{measured}'"
            )
        names = [linear.name for linear in linears(model)]
        assigned = recipe.assign(names)
        for name, rule in assigned.items():
            if rule.scheme is None:
                report.skipped("lower", "recipe", name, rule.reason or f"{recipe.source} says scheme none")
        inner = inner_linears(model)
        for linear in inner:
            report.skipped("lower", "main-graph", linear.name, _INNER)
        if not names and not inner:
            report.note("lower", "recipe", model.graph.name or "graph", _without_linears(model))
        for scheme in SCHEMES.values():
            mine = {name: rule.config for name, rule in assigned.items() if rule.scheme == scheme.name}
            if mine:
                scheme.lower(model, mine, statistics, report, dry_run=dry_run)
        if len(linears(model)) < len(names):
            origin.write(model, recipe.name)
        elif strict and recipe.quantizes and (not names or any(rule.scheme for rule in assigned.values())):
            found = [f for f in report.findings if f.stage in _LOWERING or f.rule in PRODUCT_RULES]
            raise ModelError(
                f"no linear can go through {recipe.source}: {_reasons(found)}; --dry-run says more, and --scheme none "
                "writes the file without"
            )

    def lower_cache(model: Model, report: Report) -> None:
        if recipe.cache is not None:
            kvcache.lower(model, CACHES[recipe.cache.format], recipe.cache.config, statistics, report, dry_run=dry_run)
            found = [f for f in report.findings if f.stage == kvcache.STAGE]
            if strict and not any(f.status == "rewritten" for f in found):
                raise ModelError(
                    f"the key-value cache cannot be updated in place as '{recipe.cache.name}': "
                    f"{_reasons(found)}; --dry-run says more"
                )

    stages = [_INFER, *CANONICALIZE, Stage("kv-cache", lower_cache), Stage("lower", lower)]
    if not dry_run:
        stages += [Stage(fused.STAGE, fused.lower), Stage("legalize", legalize), _ATTACH]
    with at_most(jobs):
        return pipeline.run(model, stages, dump_dir=dump_dir, progress=progress)
