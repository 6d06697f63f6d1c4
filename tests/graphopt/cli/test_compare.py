import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from graphopt.cli.main import app
from tests.support.arrays import activations, weight


@pytest.fixture
def models(tmp_path: Path, rng: np.random.Generator) -> tuple[str, str]:
    """The same product, once with its weight 1 % larger."""
    w = weight(rng, 24, 8)
    for name, factor in (("a", 1.01), ("b", 1.0)):
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> m (float[n, 24] x) => (float[n, 8] y) { y = MatMul(x, w) }'
        )
        proto.graph.initializer.append(numpy_helper.from_array(w * np.float32(factor), "w"))
        onnx.save(proto, tmp_path / f"{name}.onnx")
    return str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")


def _run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_equal_models_exit_with_0(models: tuple[str, str]) -> None:
    code, out, _ = _run(models[0], models[0], "--random", 0)
    assert code == 0
    assert "equal within the tolerance" in out


def test_different_models_exit_with_1_and_still_report(models: tuple[str, str]) -> None:
    code, out, err = _run(*models, "--random", 0, "--samples", 2, "--per-layer", "--json")
    assert code == 1
    assert "1 of 1 outputs are beyond the tolerance (normalized): y" in err
    data = json.loads(out)
    (found,) = data["comparisons"]
    assert (data["passed"], found["passed"], found["samples"]) == (False, False, 2)
    assert (data["reference"], found["model"]) == (models[1], models[0])
    assert found["outputs"][0]["normalized"] == pytest.approx(0.01, rel=1e-3)
    assert [d["name"] for d in found["layers"]] == ["y"]
    assert found["culprit"]["value"] == "y"


def test_several_models_are_judged_by_the_last(models: tuple[str, str]) -> None:
    code, out, err = _run(models[0], models[1], models[1], "--random", 0, "--json")
    assert code == 1
    assert [c["passed"] for c in json.loads(out)["comparisons"]] == [False, True]
    assert "failed: a.onnx: 1 of 1 outputs" in err
    assert "b.onnx" not in err


@pytest.mark.parametrize("runner", [["reference"], ["reference", "ort"]])
def test_runners(models: tuple[str, str], runner: list[str]) -> None:
    flags = [flag for name in runner for flag in ("--runner", name)]
    assert _run(models[1], models[1], "--random", 0, "--per-layer", "--rtol", "1e-6", *flags)[0] == 0


def test_the_first_bad_layer_is_explained(models: tuple[str, str]) -> None:
    out = _run(*models, "--random", 0, "--per-layer")[1]
    assert "the first layer that differs is" in out
    assert "no known cause: its input, its weight or its kernel differs" in " ".join(out.split())


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--rtol", "0.011"], 0),
        (["--rtol", "0.009"], 1),
        (["--metric", "allclose", "--rtol", "0.0101", "--atol", "1e-4"], 0),
        (["--metric", "allclose", "--rtol", "0.0099", "--atol", "0"], 1),
        (["--metric", "max-abs", "--atol", "100"], 0),
        (["--metric", "max-abs", "--atol", "1e-5"], 1),
        (["--metric", "cosine", "--rtol", "1e-6"], 0),
    ],
)
def test_tolerance_flags_decide(models: tuple[str, str], flags: list[str], code: int) -> None:
    assert _run(*models, "--random", 0, *flags)[0] == code


def test_npz_data(models: tuple[str, str], tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "d.npz", x=activations(rng, 5, 24))
    code, out, _ = _run(*models, "--data", tmp_path / "d.npz", "--samples", 3, "--rtol", 0.1, "--json")
    assert (code, json.loads(out)["comparisons"][0]["samples"]) == (0, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--random", "0", "--metric", "normalised"], "unknown --metric 'normalised'; did you mean 'normalized'?"),
        (["--random", "0", "--runner", "onnx"], "unknown --runner 'onnx'; known: ort, reference, trt"),
        (["--random", "0", *["--runner", "ort"] * 3], "--runner was given 3 times for 2 files; give one, or one each"),
        (["--text", "b.txt", "--data", "x.npz"], "--text and --data are two sources of data; give one"),
    ],
)
def test_user_errors_exit_with_2(models: tuple[str, str], flags: list[str], message: str) -> None:
    code, out, err = _run(*models, *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_one_file_is_not_enough(models: tuple[str, str]) -> None:
    assert "give at least two files" in _run(models[0], "--random", 0)[2]


def test_a_missing_model_is_named(models: tuple[str, str]) -> None:
    code, _, err = _run("none.onnx", models[0], "--random", 0)
    assert code == 2
    assert "none.onnx does not exist" in err
