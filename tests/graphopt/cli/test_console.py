"""The boundary between exceptions and exit codes, and where output goes."""

import json
import os
import signal
import time

import pytest
import typer

from graphopt.cli import console, main
from graphopt.cli.console import emit, guard, progress, status
from graphopt.errors import ComparisonFailed, InternalError, ModelError


def code_of(error: BaseException) -> int:
    @guard
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as e:
        verb()
    return e.value.exit_code


def test_user_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(ModelError("[bold]m.onnx[/bold] is a [file] and " + "long " * 60)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "[bold]m.onnx[/bold] is a [file]" in err, "markup in a user's file name must not be interpreted"


def test_failed_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(ComparisonFailed("logits differ")) == 1
    assert "logits differ" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InternalError("two [tensors]"), ZeroDivisionError("division")])
def test_bug_comes_with_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(error) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert str(error) in err


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_being_ended_is_as_an_interrupt(ending: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(ending)
    monkeypatch.setattr(main, "app", lambda: os.kill(os.getpid(), ending))
    try:
        with pytest.raises(KeyboardInterrupt):
            main.main()
    finally:
        signal.signal(ending, before)


def test_result_passes_through() -> None:
    assert guard(lambda: 7)() == 7


def test_emit(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [1, 2]}, True, lambda out: pytest.fail("rendered in spite of --json"))
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2]}


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, json: bool) -> str:
    """What a verb of 0.3 s leaves in a file, with a line every 0.05 s."""
    monkeypatch.setattr(console, "_EVERY", 0.05)

    @guard
    def verb(json: bool) -> None:
        with progress() as bar:
            task = bar.add_task("calibrating", total=16)
            bar.update(task, completed=3)
            time.sleep(0.15)
        with status("loading") as say:
            say("lower-vq: 2 of 7, [name]")
            time.sleep(0.15)

    verb(json=json)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_progress_in_a_file_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(monkeypatch, capsys, json=False).splitlines()
    assert {"calibrating 3 of 16, 0 s", "lower-vq: 2 of 7, [name], 0 s"} == set(lines)


def test_json_comes_without_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(monkeypatch, capsys, json=True) == ""


def test_no_line_about_what_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as bar:
        bar.add_task("calibrating", total=16)
    assert capsys.readouterr().err == ""
