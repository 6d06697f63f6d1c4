"""The repository in examples/ is what the command writes today, but for the weights."""

import json
from pathlib import Path

import pytest

from graphopt.deploy.triton import RepositoryOptions, write_repository

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")

EXAMPLE = Path(__file__).parents[4] / "examples" / "triton_smollm2"
WEIGHTS = {"models/smollm2/1/model.onnx", "models/smollm2/1/model.onnx.data", "models/smollm2/1/tokenizer.json"}


def test_the_example_is_what_the_command_writes(text_model: Path, tmp_path: Path) -> None:
    files = write_repository([text_model], tmp_path / "r", RepositoryOptions("smollm2", "ort"))
    kept = {str(f) for f in files} - WEIGHTS
    assert {p.relative_to(EXAMPLE).as_posix() for p in EXAMPLE.rglob("*") if p.is_file()} == kept
    for name in kept - {"graphopt.json"}:
        assert (EXAMPLE / name).read_text() == (tmp_path / "r" / name).read_text(), f"write {name} again"
    ours, theirs = (json.loads((folder / "graphopt.json").read_text()) for folder in (EXAMPLE, tmp_path / "r"))
    assert set(ours["files"]) == kept - {"graphopt.json"} | WEIGHTS
    assert {name: ours["files"][name] for name in kept - {"graphopt.json"}} == {
        name: theirs["files"][name] for name in kept - {"graphopt.json"}
    }
