"""The staged pipeline and its instruments."""

from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.core import pipeline
from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.errors import InternalError, ModelError, OutputError, RecipeError
from graphopt.ir import Model, text
from tests.support.rewrite import parse

SOURCE = "g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }"


def turn(op: str) -> Stage:
    """A stage that makes the last node an ``op``."""

    def run(model: Model, report: Report) -> None:
        model.graph.nodes[-1].op = op
        report.rewritten(op.lower(), "turn", "y", op)

    return Stage(op.lower(), run)


def failing(error: BaseException) -> Stage:
    def run(model: Model, report: Report) -> None:
        raise error

    return Stage("bad", run)


def test_stages_run_in_order_and_are_timed() -> None:
    model, told = parse(SOURCE), []
    report = pipeline.run(model, [turn("Abs"), turn("Exp")], progress=told.append)
    assert model.graph.nodes[-1].op == "Exp"
    assert told == list(report.seconds) == ["abs", "exp"]
    assert [f.reason for f in report.findings] == ["Abs", "Exp"]
    assert all(s >= 0 for s in report.seconds.values())


def test_report_is_added_to() -> None:
    report = Report()
    report.note("before", "x", "y", "z")
    assert pipeline.run(parse(SOURCE), [turn("Abs")], report=report) is report
    assert [f.stage for f in report.findings] == ["before", "abs"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("division"), KeyError("k"), InternalError("two tensors"), MemoryError()]
)
def test_failure_names_stage_and_history(error: Exception) -> None:
    with pytest.raises(InternalError, match=r"stage 'bad' failed \(after abs, exp\)") as e:
        pipeline.run(parse(SOURCE), [turn("Abs"), turn("Exp"), failing(error), turn("Sin")])
    assert e.value.__cause__ is error
    with pytest.raises(InternalError, match=r"after nothing"):
        pipeline.run(parse(SOURCE), [failing(error)])


@pytest.mark.parametrize("error", [ModelError("the user's"), RecipeError("the user's"), KeyboardInterrupt()])
def test_errors_of_the_user_and_interrupts_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as e:
        pipeline.run(parse(SOURCE), [failing(error)])
    assert e.value is error


def test_broken_promise(tmp_path: Path) -> None:
    promise: Callable[[Model], str | None] = lambda model: f"{model.graph.nodes[-1].op} is left"  # noqa: E731
    stage = Stage("tidy", turn("Abs").run, ensures=promise)
    with pytest.raises(InternalError, match=r"stage 'tidy' broke its promise \(after exp\): Abs is left"):
        pipeline.run(parse(SOURCE), [turn("Exp"), stage], dump_dir=tmp_path)
    assert "Abs" in (tmp_path / "001_tidy.txt").read_text(), "the dump shows what broke the promise"


def test_kept_promise() -> None:
    pipeline.run(parse(SOURCE), [Stage("tidy", turn("Abs").run, ensures=lambda model: None)])


def test_dumps(tmp_path: Path) -> None:
    model = parse(SOURCE)
    pipeline.run(model, [turn("Abs"), turn("Exp")], dump_dir=tmp_path / "new" / "dir")
    files = sorted((tmp_path / "new" / "dir").iterdir())
    assert [f.name for f in files] == ["000_abs.txt", "001_exp.txt"]
    assert "Abs(" in files[0].read_text()
    assert files[1].read_text() == text.dump(model)


def test_dump_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the IR dump .*000_abs.txt"):
        pipeline.run(parse(SOURCE), [turn("Abs")], dump_dir=tmp_path / "file")
