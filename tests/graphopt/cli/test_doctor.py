"""`graphopt doctor`: exit code 1 and advice if building engines is impossible, JSON for scripts."""

import json

import pytest
from typer.testing import CliRunner, Result

from graphopt.cli import doctor as verb
from graphopt.cli.main import app
from graphopt.engine.doctor import Check, Diagnosis, Status

NOTE = Check("GPU", Status.NOTE, "none", "only running engines takes one")
ERROR = Check("plugin library", Status.ERROR, "not usable", "build [it] with cmake")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.fixture(params=[(NOTE,), (NOTE, ERROR)], ids=["healthy", "broken"])
def diagnosis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    made = Diagnosis(request.param)
    monkeypatch.setattr(verb, "examine", lambda flavour, plugins, ops: made)
    return made


def test_exit_code_and_json_say_the_same(diagnosis: Diagnosis) -> None:
    result = run("--json")
    assert result.exit_code == (0 if diagnosis.healthy else 1)
    assert json.loads(result.stdout) == diagnosis.to_dict()


def test_people_get_every_advice(diagnosis: Diagnosis) -> None:
    result = run()
    assert result.exit_code == (0 if diagnosis.healthy else 1)
    for check in diagnosis.checks:
        assert check.found in result.stdout
        assert str(check.advice) in result.stdout


def test_unknown_flavour_is_part_of_the_diagnosis() -> None:
    result = run("--flavour", "rtz", "--json")
    assert result.exit_code == 1
    advice = {c["name"]: c["advice"] for c in json.loads(result.stdout)["checks"]}
    assert advice["TensorRT in use"] == "unknown TensorRT flavour 'rtz'; did you mean 'rtx'?"
