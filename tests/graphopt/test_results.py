"""Where a result comes from: the environment, git, or the version; and files that are whole or untouched."""

import json
import re
from pathlib import Path

import pytest

import graphopt
from graphopt import results
from graphopt.errors import OutputError
from graphopt.results import ENVIRONMENT, provenance, write_rows


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    found = provenance()
    assert re.fullmatch(r"[0-9a-f]{12}|v.+", found["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_a_copy_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "abc1234")
    assert provenance()["commit"] == "abc1234"


def test_without_git_the_version_stands_for_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(results.subprocess, "run", no_git)
    assert provenance()["commit"] == f"v{graphopt.__version__}"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "h100" / "mixq.json"
    write_rows(path, [{"us": 1.5}])
    write_rows(path, [{"us": 2.5}, {"us": 3.5}])
    assert [row["us"] for row in json.loads(path.read_text())] == [2.5, 3.5]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a folder is needed")
    with pytest.raises(OutputError, match=r"cannot write results to .*nothing was written"):
        write_rows(tmp_path / "taken" / "mixq.json", [])
