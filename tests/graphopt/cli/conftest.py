"""Every verb that a test of this folder runs prints what graphopt/cli/shapes says."""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from graphopt.cli.console import emit
from graphopt.cli.main import _VERBS
from graphopt.cli.shapes import SHAPES

#: Functions of verbs by module and name, as frames have them.
COMMANDS = {("graphopt.cli." + c.split()[0], c.split()[-1].replace("-", "_")): c for c in SHAPES}


def command_that_emits() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if command := COMMANDS.get((frame.f_globals.get("__name__"), frame.f_code.co_name)):
            return command
        frame = frame.f_back
    raise AssertionError("something emits that is no verb")


def no_number(text: str) -> float:
    raise AssertionError(f"JSON has no {text}")


def check(command: str, data: Any) -> None:
    """Validate what a command prints, as a reader of JSON gets it."""
    plain = json.loads(json.dumps(data, default=str), parse_constant=no_number)
    errors = []
    for shape in SHAPES[command]:
        try:
            shape.model_validate(plain)
            return
        except ValueError as e:
            errors.append(str(e))
    raise AssertionError("\n".join(errors))


@pytest.fixture(autouse=True)
def known_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(data: dict[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
        check(command_that_emits(), data)
        emit(data, as_json, render)

    for verb in _VERBS:
        monkeypatch.setattr(importlib.import_module(f"graphopt.cli.{verb}"), "emit", checked)
