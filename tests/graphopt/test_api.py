"""The public functions."""

from pathlib import Path

import pytest

import graphopt
from graphopt.core.statistics import Statistics
from graphopt.errors import CalibrationError, RecipeError
from graphopt.models.llama import build_llama
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = llama_config(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, vocab_size=64, head_dim=16
    )
    return build_llama(config, RandomWeights(config), tmp_path / "m.onnx")[0]


def test_load_optimize_save(path: Path, tmp_path: Path) -> None:
    model = graphopt.load(path)
    report = graphopt.optimize(model, "mixq-w8a8")
    assert report.counts("rewritten")["mixq"] == 8
    assert graphopt.save(model, tmp_path / "out.onnx")[0] == tmp_path / "out.onnx"


def test_recipe_from_a_file_and_statistics_in_any_form(path: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\nlayers: [{match: '*', scheme: none}]")
    assert "mixq" not in graphopt.optimize(graphopt.load(path), tmp_path / "r.yaml").counts("rewritten")
    Statistics().save(tmp_path / "s.npz")
    for statistics in (tmp_path / "s.npz", str(tmp_path / "s.npz"), Statistics()):
        with pytest.raises(CalibrationError):
            graphopt.optimize(graphopt.load(path), statistics=statistics)
    with pytest.raises(RecipeError, match="unknown preset"):
        graphopt.optimize(graphopt.load(path), "no such preset")


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        graphopt.lode  # noqa: B018
