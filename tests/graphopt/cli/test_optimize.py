"""`graphopt optimize`: what it writes and prints, and every bad input with its exit code."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner, Result

from graphopt.cli.main import app
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.ir import kv_cache
from graphopt.models.llama import build_llama
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from tests.support.arrays import activations

CONFIG = llama_config(
    hidden_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, vocab_size=64, head_dim=16
)
LINEARS, PRODUCTS = 8, 7  # gate and up are one product


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build_llama(CONFIG, RandomWeights(CONFIG, 0, outliers=2), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def optimize(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["optimize", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    """Run, expect exit code 2 and one sentence on standard error, and return it."""
    result = optimize(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_help_names_every_preset_and_every_format_of_the_cache() -> None:
    options = {p.name: p.help for p in typer.main.get_command(app).commands["optimize"].params}  # type: ignore[attr-defined]
    for option, catalogue in (("scheme", SCHEMES), ("kv_cache", CACHES)):
        named = set(re.split(r"[ ,;.]+", options[option]))
        assert {preset for entry in catalogue.values() for preset in entry.presets} <= named


def test_a_folder_in_place_of_a_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    for verb in ("optimize", "calibrate"):
        result = CliRunner().invoke(app, [verb, "."])
        assert (result.exit_code, result.stderr) == (
            2,
            "error: . is a folder; give an .onnx file in it, such as m.onnx\n",
        )


def folder(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_writes_a_model_that_says_what_it_is(model: Path, tmp_path: Path) -> None:
    result = optimize(model, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["files"][0] == str(tmp_path / "m.opt.onnx")
    onnx.checker.check_model(str(tmp_path / "m.opt.onnx"))
    saved = onnx.load(tmp_path / "m.opt.onnx", load_external_data=False)
    assert sum(n.op_type == "MixQLinearOnline" for n in saved.graph.node) == PRODUCTS
    assert {f.name for f in saved.functions} == {n.op_type for n in saved.graph.node if n.domain == "graphopt"}
    rewritten = [f for f in data["findings"] if f["rule"] == "mixq" and f["status"] == "rewritten"]
    assert len(rewritten) == LINEARS
    assert data["after"]["plugin_nodes"] > 0 == data["before"]["plugin_nodes"]


def test_over_the_source(model: Path, tmp_path: Path) -> None:
    assert optimize(model, "-o", model).exit_code == 0
    onnx.checker.check_model(str(model))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_dry_run_writes_nothing_and_lists_reasons(model: Path, tmp_path: Path) -> None:
    before = folder(tmp_path)
    result = optimize(model, "--dry-run", "--exclude", "*lm_head*", "--json", "-o", "/nowhere/m.onnx")
    assert result.exit_code == 0, result.output
    findings = json.loads(result.stdout)["findings"]
    skipped = [f for f in findings if f["status"] == "skipped"]
    assert [(f["node"].count("lm_head"), f["reason"]) for f in skipped] == [(1, "preset mixq-w8a8 says scheme none")]
    assert folder(tmp_path) == before
    shown = optimize(model, "--dry-run", "--exclude", "*lm_head*").stdout
    for finding in findings:  # a dry run names every node, each on a line of its own
        assert finding["status"] == "rewritten" or f"      {finding['node']}\n" in shown
    assert "recipe: preset mixq-w8a8 says scheme none" in shown


def test_names_the_first_nodes_of_a_reason(model: Path) -> None:
    shown = optimize(model).stdout
    lines = shown[shown.index("no calibration") :].splitlines()
    notes = [f for f in json.loads(optimize(model, "--json").stdout)["findings"] if f["status"] == "note"]
    assert len(notes) > 4, "all would be named"
    assert lines[1:5] == [f"      {f['node']}" for f in notes[:3]] + [f"      and {len(notes) - 3} more"]


def test_says_how_many_linears_were_left_and_groups_reasons_that_differ_in_names(tmp_path: Path) -> None:
    names = [f"q{i}" for i in range(6)]
    weights = ", ".join(f"int8[4, 4] w{n} = {{{', '.join([n[1:]] * 16)}}}" for n in names)
    nodes = "".join(f"[d{n}] d{n} = DequantizeLinear(w{n}, s) [{n}] y{n} = MatMul(x, d{n}) " for n in names)
    floats = ", ".join(map(str, range(16)))
    onnx.save(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[B, 4] x) => (float[B, 4] y) '
        f"<{weights}, float s = {{0.5}}, float[4, 4] w = {{{floats}}}> "
        f"{{ {nodes} p = Sum({', '.join('y' + n for n in names)}) [plain] m = MatMul(x, w) y = Add(m, p) }}"
    ), tmp_path / "m.onnx")  # fmt: skip
    shown = optimize(tmp_path / "m.onnx").stdout
    assert "\n1 of 7 linears went through a scheme\n" in shown
    reason = "  linear-matmul: weight '...' is already quantized (DequantizeLinear '...')\n"
    assert reason + "      q0\n      q1\n      q2\n      and 3 more\n" in shown
    data = json.loads(optimize(tmp_path / "m.onnx", "--json").stdout)
    assert data["linears"] == {"lowered": 1, "left": 6}
    every = optimize(tmp_path / "m.onnx", "--dry-run").stdout
    assert all(f"weight 'w{n}' is already quantized (DequantizeLinear 'd{n}')\n      {n}\n" in every for n in names)
    assert "1 of 7 linears would go through a scheme" in every


def test_dumps_every_stage(model: Path, tmp_path: Path) -> None:
    assert optimize(model, "--dump-ir", tmp_path / "ir").exit_code == 0
    dumps = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert [d[:4] for d in dumps] == [f"{i:03d}_" for i in range(len(dumps))]
    assert "graphopt.MixQLinear" in (tmp_path / "ir" / dumps[-1]).read_text()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_jobs(model: Path, tmp_path: Path, jobs: str) -> None:
    assert optimize(model, "--scheme", "vq-aqlm2", "--jobs", jobs).exit_code == 0
    assert optimize(model, "--jobs", "0").exit_code == 2


def test_weights_that_became_larger_are_pointed_out(model: Path) -> None:
    """Two codebooks of 4096 entries for a weight of a thousand elements."""
    assert "its weights take more than before" in " ".join(optimize(model, "--scheme", "vq-aqlm3").stdout.split())
    assert "more than before" not in optimize(model).stdout


def test_recipe(model: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        'version: 1\nlayers:\n  - {match: "*mlp*", scheme: mixq}\n  - {match: "*", scheme: none}\n'
    )
    result = optimize(model, "--recipe", tmp_path / "r.yaml", "--json")
    assert result.exit_code == 0, result.output
    names = [
        f["node"] for f in json.loads(result.stdout)["findings"] if f["rule"] == "mixq" and f["status"] == "rewritten"
    ]
    assert len(names) == 3
    assert all("mlp" in n for n in names)


@pytest.mark.parametrize("how", ["flags", "recipe"])
def test_cache_updated_in_place(how: str, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        'version: 1\nlayers: [{match: "*", scheme: none}]\nkv_cache: {format: static, settings: {capacity: 64}}\n'
    )
    flags = ["--scheme", "none", "--kv-cache", "static", "--kv-capacity", "64"]
    result = optimize(model, *(flags if how == "flags" else ["--recipe", recipe]), "--json")
    assert result.exit_code == 0, result.output
    saved = onnx.load(tmp_path / "m.opt.onnx", load_external_data=False)
    cache = kv_cache.read(saved.metadata_props)
    assert cache is not None
    assert (cache.kind, cache.capacity, len(cache.pairs)) == ("static", 64, 2)
    assert [f.name for f in saved.functions] == ["CachedAttention"]


def test_bad_caches(model: Path) -> None:
    assert "unknown key-value cache 'sttic'; did you mean 'static'?" in refused(model, "--kv-cache", "sttic")
    assert "--kv-capacity needs --kv-cache" in refused(model, "--kv-capacity", "64")


def test_nothing_of_what_was_asked_for(model: Path, tmp_path: Path) -> None:
    """Neither is an engine without our kernels taken for one with them, nor a cache that grows for one in place."""
    no_past = tmp_path / "bert"
    done = CliRunner().invoke(app, ["model", "bert", "--layers", "1", "--vocab", "100", "-o", str(no_past)])
    assert done.exit_code == 0
    error = refused(no_past / "model.onnx", "--kv-cache", "static")
    assert "cannot be updated in place as 'static': 'model': no attention reads past and new keys" in error
    double = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (double[n, 4] x) => (double[n, 4] y) '
        "<double[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> { [fc] y = MatMul(x, w) }"
    )
    onnx.save(double, tmp_path / "double.onnx")
    assert "preset mixq-w8a8: 'fc': weight 'w' is float64" in refused(tmp_path / "double.onnx")
    again = tmp_path / "m.opt.onnx"
    assert optimize(model).exit_code == 0
    error = refused(again, "-o", tmp_path / "o.onnx")
    assert "no linear can go through preset mixq-w8a8: 'llama': its linears went through 'mixq-w8a8' before" in error
    assert not (tmp_path / "o.onnx").exists()
    for flags in (["--dry-run"], ["--scheme", "none", "-o", tmp_path / "same.onnx"]):
        assert optimize(again, *flags).exit_code == 0
    assert optimize(model, "--exclude", "*", "-o", tmp_path / "e.onnx").exit_code == 0


def bad_models(tmp_path: Path, good: Path) -> Iterator[tuple[str, Path, str]]:
    whole = good.read_bytes()
    (tmp_path / "text.onnx").write_text("hello")
    yield "not ONNX", tmp_path / "text.onnx", "is not an ONNX"
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    yield "truncated", tmp_path / "cut.onnx", "truncated"
    yield "missing", tmp_path / "absent.onnx", "does not exist"
    lean = onnx.load(good, load_external_data=False)
    for name, opset, part in (("old", 9, "uses opset 9"), ("new", 99, "uses opset 99")):
        lean.opset_import[0].version = opset
        (tmp_path / f"{name}.onnx").write_bytes(lean.SerializeToString())
        yield name, tmp_path / f"{name}.onnx", part


def test_what_was_slower_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    slow = {"names": ["/lm_head/MatMul"], "us": 3.0, "baseline_us": 2.0, "sentence": "'/lm_head/MatMul' takes 3.0 us"}
    (tmp_path / "bench.json").write_text(json.dumps({"slower": [slow]}))
    done = optimize(model, "-o", tmp_path / "o.onnx", "--from-profile", tmp_path / "bench.json", "--json")
    found = json.loads(done.stdout)["findings"]
    left = [(f["node"], f["reason"]) for f in found if f["rule"] == "recipe"]
    assert left == [("/lm_head/MatMul", "bench.json: '/lm_head/MatMul' takes 3.0 us")]
    assert sum(f["rule"] == "mixq" and f["status"] == "rewritten" for f in found) == LINEARS - 1


def test_bad_profiles(model: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    assert "bench.json does not exist" in refused(model, "--from-profile", bench)
    for content in ("", "[]", "{}", '{"slower": [{"names": ["x"]}]}'):
        bench.write_text(content)
        assert "is not what 'graphopt bench engine --baseline PLAN --json' prints" in refused(
            model, "--from-profile", bench
        )
    bench.write_text(json.dumps({"slower": [{"names": ["/lm_haed/MatMul"], "sentence": "slow"}]}))
    assert "'/lm_haed/MatMul' matches none" in refused(model, "--from-profile", bench)


def test_bad_models(model: Path, tmp_path: Path) -> None:
    for name, path, part in list(bad_models(tmp_path, model)):
        before = folder(tmp_path)
        assert part in refused(path, "-o", tmp_path / "out.onnx"), name
        assert folder(tmp_path) == before, name


def test_bad_external_data(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "m.onnx.data"
    os.truncate(data, data.stat().st_size // 2)
    assert "is truncated" in refused(model)
    data.unlink()
    assert "which is missing" in refused(model)


def test_weights_that_are_not_finite(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    weight = next(t for t in proto.graph.initializer if "down_proj" in t.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 5] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, tmp_path / "nan.onnx")
    assert weight.name in refused(tmp_path / "nan.onnx")
    assert not (tmp_path / "nan.opt.onnx").exists()


def write_statistics(path: Path, name: str, channels: int) -> Path:
    x = activations(np.random.default_rng(0), 9, channels).astype(np.float64)
    Statistics({name: LinearStatistics(np.abs(x).max(0).astype(np.float32), (x**2).mean(0), 9)}).save(path)
    return path


def test_bad_statistics(model: Path, tmp_path: Path) -> None:
    listed = json.loads(optimize(model, "--dry-run", "--json").stdout)["findings"]
    name = next(f["node"] for f in listed if f["rule"] == "mixq" and f["status"] == "rewritten")
    assert "calibrate this very model" in refused(model, "--stats", write_statistics(tmp_path / "a.npz", "other", 32))
    assert "33 channels" in refused(model, "--stats", write_statistics(tmp_path / "b.npz", name, 33))
    assert "does not exist" in refused(model, "--stats", tmp_path / "absent.npz")
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    assert "not a statistics file" in refused(model, "--stats", tmp_path / "c.npz")
    assert not (tmp_path / "m.opt.onnx").exists()


def test_bad_recipes(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('version: 1\nlayers: [{match: "*", scheme: mixq, settings: {outliers: {multipel: 3}}}]')
    assert "did you mean 'multiple'?" in refused(model, "--recipe", recipe)
    recipe.write_text('version: 1\nlayers: [{match: "*q_porj*", scheme: mixq}]')
    assert "'*q_porj*' matches none of the 8 linears" in refused(model, "--recipe", recipe)
    assert "matches none" in refused(model, "--exclude", "*nothing*")
    assert "did you mean 'mixq-w8a8'?" in refused(model, "--scheme", "mixq-w8a9")
    assert "--exclude works with a preset" in refused(model, "--recipe", recipe, "--exclude", "*")


def test_outputs_that_cannot_be_written_are_found_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.ir.load", lambda path: pytest.fail("the model was loaded first"))
    assert "create it first" in refused(model, "-o", tmp_path / "no" / "m.onnx")
    assert "it is a folder" in refused(model, "-o", tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode, **_: not mode & os.W_OK)
    assert "no permission to write" in refused(model, "-o", tmp_path / "x.onnx")


def test_bug_of_ours_exits_with_70_and_a_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("graphopt.passes.mixq.lower._select", broken)
    result = optimize(model)
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr
    assert "bug in graphopt" in result.stderr
