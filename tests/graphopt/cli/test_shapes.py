"""The shapes of all verbs: none is missing, the page is that of the models, and verbs without a GPU keep to them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from graphopt.cli.main import app
from graphopt.cli.shapes import SHAPES, files, markdown

PAGE = Path(__file__).parents[3] / "docs" / "json.md"


def commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name


def test_every_command_has_a_shape() -> None:
    assert set(commands(typer.main.get_command(app))) == set(SHAPES)


def test_the_page_is_that_of_the_shapes() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run python scripts/json_docs.py"


def test_a_shape_takes_no_other_fields() -> None:
    good = {"text": "g"}
    files.InspectText.model_validate(good)
    for wrong in ({}, {"text": 1}, {**good, "more": 1}):
        with pytest.raises(ValidationError):
            files.InspectText.model_validate(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, its statistics, and what two schemes make of it."""
    return tmp_path_factory.mktemp("shapes")


def test_a_tour(folder: Path) -> None:
    """As a user goes; the fixture of this folder compares what each verb prints."""

    def run(*arguments: str | Path) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    model, stats, w8, vq = (folder / name for name in ("m/model.onnx", "s.npz", "w8.onnx", "vq.onnx"))
    run("model", "llama", "--hidden", "64", "--layers", "1", "--vocab", "64", "--outliers", "2", "-o", model.parent)
    run("model", "bert", "--layers", "1", "--vocab", "64", "-o", folder / "bert")
    random = ("--random", "0", "--samples", "2", "--length", "16")
    assert run("calibrate", model, *random, "-o", stats, "--second-moment", "--keys-values")["attentions"] == 1
    assert run("optimize", model, "--stats", stats, "-o", w8)["linears"]["lowered"] == 8
    assert run("optimize", model, "--stats", stats, "--scheme", "vq-aqlm2", "--kv-cache", "cq4", "-o", vq)["files"]
    assert run("optimize", model, "--dry-run")["files"] == []
    assert run("inspect", w8)["linears"]
    assert run("inspect", w8, "--text")["text"]
    assert run("compare", w8, model, *random, "--rtol", "0.9", "--per-layer")["comparisons"][0]["layers"]
    assert run("generate", w8, "--prompt-ids", "1,2,3", "--max-new-tokens", "2")["ids"]
    assert run("estimate", model)["phases"]
