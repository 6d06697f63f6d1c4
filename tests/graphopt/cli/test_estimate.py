"""`graphopt estimate`: JSON for scripts, a table for people, one sentence for what cannot be."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from graphopt.cli.main import app

EXPORTED = Path(__file__).parents[2] / "fixtures" / "exporters" / "llama_dynamo18.onnx"


def estimate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)], env={"COLUMNS": "80"})


def test_json_has_every_array_in_both_phases() -> None:
    result = estimate(EXPORTED, "--seq", "32", "--context", "48", "--batch", "2", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["batch"], data["seq"], data["context"], data["equal"]) == (2, 32, 48, "area")
    found = {(p["array"], p["phase"]) for p in data["phases"]}
    assert found == {(a, p) for a in ("int8", "ant", "olive", "mant") for p in ("prefill", "decode")}
    assert all(p["joules"] > 0 and p["seconds"] > 0 for p in data["phases"])


def test_table_fits_a_terminal() -> None:
    shown = estimate("--preset", "opt-6.7b", "--equal", "pes", "--seq", "8192").stdout
    assert "…" not in shown
    rows = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == ["int8", "ant", "olive", "mant"] * 2
    assert {row[2] for row in rows} == {"256"}


def test_parameters_change_the_outcome(tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text("clock: {value: 250, unit: MHz, source: half of it}")
    usual, halved = (
        json.loads(estimate("--preset", "smollm2-135m", "--json", *more).stdout)["phases"][0]["seconds"]
        for more in ([], ["--parameters", str(slow)])
    )
    assert halved == pytest.approx(2 * usual)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either an .onnx file or --preset"),
        ([EXPORTED, "--preset", "opt-13b"], "give either an .onnx file or --preset"),
        (["--preset", "opt-13"], "no preset 'opt-13'; did you mean 'opt-13b'"),
        (["--preset", "opt-13b", "--batch", "0"], "batch must be at least 1"),
        (["absent.onnx"], "does not exist"),
        (["--preset", "opt-13b", "--parameters", "absent.yaml"], "absent.yaml"),
    ],
)
def test_refusals(arguments: list[str | Path], message: str) -> None:
    result = estimate(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
