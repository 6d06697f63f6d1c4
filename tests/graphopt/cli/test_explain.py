"""`graphopt explain`: JSON for scripts, tables for people, one sentence for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graphopt import compile, ir
from graphopt.cli.main import app
from graphopt.core.recipe import Recipe
from graphopt.explain.layers import VqLinear
from graphopt.explain.planner import Planner
from graphopt.passes import SCHEMES
from tests.support.decoders import CONFIG, write_decoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("exported") / "m.onnx", dtype="float16")


@pytest.fixture(scope="module")
def optimized(exported: Path) -> Path:
    model = ir.load(exported)
    compile.optimize(model, Recipe.preset("vq-gptvq2", SCHEMES))
    path = exported.with_name("m.opt.onnx")
    ir.save(model, path)
    return path


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the library, whose plans are made here."""

    def plan(_: Planner, view: VqLinear, m: int, device: Any, *, clusters: bool = True) -> dict[str, Any]:
        cache = {
            "entries": 256,
            "entry_bytes": 8,
            "copies": 16,
            "tables": 4,
            "shared_bytes": 131072,
            "panel_bytes": 32768,
        }
        found = {"few8": 7.5 if clusters else 9.0, "tile64": 12.0} if view.dtype == "float16" else {}
        return {"kernel": "few8" if found else "generic", "split": 2 if clusters else 1, "candidates": found, **cache}

    monkeypatch.setattr(Planner, "__init__", lambda self, path: None)
    monkeypatch.setattr(Planner, "plan", plan)
    file = tmp_path / "libgraphopt_plugins.so"
    file.touch()
    return file


def explain(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], env={"COLUMNS": "120"})


def test_json(optimized: Path, library: Path) -> None:
    result = explain(optimized, "--plugins", library, "--tokens", "1", "--tokens", "40", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert len(data["linears"]) == 7 * CONFIG.num_hidden_layers + 1
    row = next(r for r in data["linears"] if "gate_proj" in r["name"])
    assert (row["n"], row["k"], row["format"]) == (CONFIG.intermediate_size, CONFIG.hidden_size, "VQ<4,8,1>")
    assert [p["m"] for p in row["plans"]] == [1, 40]
    first = row["plans"][0]
    assert (first["kernel"], first["us"], first["split"]) == ("few8", 7.5, 2)
    assert first["us_without"]["dataflow"] == 9.0
    assert 7.5 < first["us_without"]["cache"] < first["us_without"]["all"]


def test_switches_change_what_is_shown(optimized: Path, library: Path) -> None:
    shown = explain(optimized, "--plugins", library, "--no-dataflow", "--tokens", "1", "--json")
    data = json.loads(shown.stdout)
    assert data["switches"] == {"cache": True, "dataflow": False, "fusion": True}
    assert {(p["us"], p["split"]) for r in data["linears"] for p in r["plans"]} == {(9.0, 1)}


def test_like_layers_are_one_table_that_fits(optimized: Path, library: Path) -> None:
    shown = explain(optimized, "--plugins", library, "--layer", "*gate_proj*").stdout
    assert shown.count("like it") == 1
    assert f"and {CONFIG.num_hidden_layers - 1} like it: 160 x 64, VQ<4,8,1>" in shown
    assert "…" not in shown


def test_what_transforms_an_input_is_named(exported: Path, tmp_path: Path, library: Path) -> None:
    model = ir.load(exported)
    layer = {"match": "*", "scheme": "vq", "settings": {"codebook": "e8", "rounds": 0, "rounding": "nearest"}}
    compile.optimize(model, Recipe.parse({"version": 1, "layers": [layer]}, SCHEMES, "recipe"))
    path = tmp_path / "m.opt.onnx"
    ir.save(model, path)
    shown = explain(path, "--plugins", library, "--tokens", "1").stdout
    assert "input from VQAddRMSNormHadamard, in one launch for 2 linears" in shown  # gate and up
    assert "input from VQGatedSiluHadamard\n" in shown
    assert "input from VQHadamard\n" in shown  # attention, which nothing fuses with


def test_float32_is_named_as_the_reason(optimized: Path, library: Path) -> None:
    shown = explain(optimized, "--plugins", library, "--dtype", "float32", "--layer", "*q_proj*").stdout
    assert "generic kernel: x is float32, and the other kernels take float16 and bfloat16" in shown


@pytest.mark.usefixtures("libnvrtc")
def test_generated_kernels_are_shown(exported: Path, tmp_path: Path, plugin_library: Path) -> None:
    model = ir.load(exported)
    layer = {"match": "*", "scheme": "vq", "settings": {"vector": 2, "bits": 4, "residuals": 1, "tile": 0}}
    compile.optimize(model, Recipe.parse({"version": 1, "layers": [layer]}, SCHEMES, "recipe"))
    path = tmp_path / "m.opt.onnx"
    ir.save(model, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(tmp_path))
        shown = explain(path, "--plugins", plugin_library, "--layer", "*gate_proj*", "--tokens", "1").stdout
    assert "1 token: generated8 kernel: made for VQ<2,4,1> when an engine is built:" in shown
    assert "in shared memory: codes below 16, 100% of look-ups" in shown


def test_refusals(exported: Path, optimized: Path, library: Path) -> None:
    for arguments, message in (
        ([exported], "has no vector-quantized layers; give a model that optimize wrote with a vq scheme"),
        ([optimized, "--layer", "*absent*"], "--layer '*absent*' matches none of the "),
        ([optimized, "--device", "h10"], "no GPU 'h10' to plan for; did you mean 'h100'"),
        ([optimized, "--plugins", library.with_name("absent.so")], "absent.so does not exist"),
        (["absent.onnx"], "absent.onnx"),
    ):
        result = explain(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.stderr
