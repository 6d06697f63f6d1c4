"""Every number has a source; a user's file changes what it names and nothing else."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from graphopt.errors import RecipeError
from graphopt.estimate.parameters import Parameters

PARAMETERS = Parameters.load()
RAW: dict[str, Any] = yaml.safe_load(files("graphopt.estimate").joinpath("parameters.yaml").read_text())


def mappings(data: Any) -> list[dict[str, Any]]:
    children = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return ([data] if isinstance(data, dict) else []) + [m for child in children for m in mappings(child)]


def test_every_number_has_a_source() -> None:
    numeric = [m for m in mappings(RAW) if any(isinstance(v, (int, float)) and v is not True for v in m.values())]
    assert len(numeric) > 40
    assert not [m for m in numeric if len(str(m.get("source", ""))) < len("definition")]


def test_powers_and_areas_are_those_of_the_reports() -> None:
    """Spot checks against the Design Compiler reports and CACTI outputs that the file cites."""
    mant = PARAMETERS.pes["mant"]
    assert (mant.area.value, mant.dynamic.value, mant.static.value) == (2062.032, 433.561, 40.198)
    assert PARAMETERS.buffers.weights.read.value == pytest.approx(132.893 / 608, rel=1e-3)
    assert PARAMETERS.buffers.outputs.write.value == pytest.approx(79.7215 / 512, rel=1e-3)
    assert PARAMETERS.quantizer.energy.value == pytest.approx((39.4347 + 356.383 + 916.3696 + 550.7498) / 500, rel=1e-2)
    assert PARAMETERS.stored_bits(4, grouped=True) == 4.3125  # numerics of the storage: codes, scale and type
    assert PARAMETERS.stored_bits(8, grouped=False) == 8


def changed(tmp_path: Path, text: str) -> Parameters:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return Parameters.load(path)


def test_a_file_replaces_what_it_names(tmp_path: Path) -> None:
    mine = changed(tmp_path, "dram: {width: {value: 128, unit: bit/cycle, source: my board}}")
    assert mine.dram.width.value == 128
    assert mine.model_copy(update={"dram": PARAMETERS.dram}) == PARAMETERS
    assert mine.dram.energy == PARAMETERS.dram.energy


def test_first_matching_glob_decides() -> None:
    ant = PARAMETERS.arrays["ant"]
    assert ant.bits("model.layers.0.mlp.gate_proj").weight == 4
    assert ant.bits("/model/layers.3/self_attn/q_proj/MatMul").weight == 8
    assert ant.bits("anything").weight == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dram: {width: {value: 128, unit: bit/cycle}}", r"dram\.width\.source"),
        ("clock: {value: -1, unit: MHz, source: me}", r"clock\.value"),
        ("clock: {value: .inf, unit: MHz, source: me}", r"clock\.value"),
        ("clok: {value: 1, unit: MHz, source: me}", "unknown key 'clok'; did you mean 'clock'"),
        ("arrays: {mant: {pe: mnt}}", "no PE 'mnt'; did you mean 'mant'"),
        ("arrays: {ant: {attention: {cache: 4, activation: 16, source: me}}}", "PE 'fused' has no product 4x16"),
        ("- 1", "expected a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_refusals_name_the_culprit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(tmp_path, text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        Parameters.load(tmp_path / "absent.yaml")


def test_no_entry_for_a_linear(tmp_path: Path) -> None:
    entry = "{match: '*q_proj*', weight: 8, activation: 8, source: me}"
    mine = changed(tmp_path, f"arrays: {{int8: {{linears: [{entry}]}}}}")
    with pytest.raises(RecipeError, match="matches 'lm_head'"):
        mine.arrays["int8"].bits("lm_head")
