"""The staged pipeline: named stages in order; dumping, timing and verifying are instruments around them."""

__all__ = ["Stage", "run"]

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.core.report import Report
from graphopt.errors import GraphOptError, InternalError, OutputError
from graphopt.ir import text
from graphopt.ir.model import Model


@dataclass(frozen=True)
class Stage:
    """One named step: ``run(model, report)`` changes the model in place and records what it did.

    ``ensures(model)`` returns a sentence if the stage's promise does not hold afterwards, else None.
    """

    name: str
    run: Callable[[Model, Report], None]
    ensures: Callable[[Model], str | None] | None = None


def run(
    model: Model,
    stages: Sequence[Stage],
    *,
    report: Report | None = None,
    dump_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run ``stages`` on ``model`` in order.

    Args:
        model: changed in place.
        stages: in order; names are unique.
        report: to add to; a new one by default.
        dump_dir: write the IR text after each stage to ``NNN_<stage>.txt`` here.
        progress: called with each stage's name before it runs, and with what a long stage is at.

    Raises:
        GraphOptError: as a stage raised it.
        InternalError: a stage failed otherwise, or broke its promise; names the stage and those before it.
        OutputError: the dump folder cannot be written.
    """
    report = report if report is not None else Report()
    report.on_progress = progress
    done: list[str] = []
    for number, stage in enumerate(stages):
        if progress:
            progress(stage.name)
        start = time.perf_counter()
        try:
            stage.run(model, report)
        except GraphOptError:
            raise
        except Exception as e:
            raise InternalError(f"stage '{stage.name}' failed (after {', '.join(done) or 'nothing'}): {e}") from e
        report.seconds[stage.name] = time.perf_counter() - start
        if dump_dir:
            _dump(model, dump_dir / f"{number:03d}_{stage.name}.txt")
        if stage.ensures and (broken := stage.ensures(model)):
            raise InternalError(
                f"stage '{stage.name}' broke its promise (after {', '.join(done) or 'nothing'}): {broken}"
            )
        done.append(stage.name)
    return report


def _dump(model: Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.dump(model))
    except OSError as e:
        raise OutputError(f"cannot write the IR dump {path}: {e.strerror or e}") from e
