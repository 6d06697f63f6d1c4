"""The manifest survives JSON, and refuses what it cannot understand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphopt.engine import manifest
from graphopt.engine.manifest import ExternalData, Manifest, Plugins, Source, Tensor
from graphopt.engine.profiles import Profile, Range
from graphopt.errors import EngineError

FULL = Manifest(
    format=manifest.FORMAT,
    graphopt="0.1.0",
    flavour="rtx",
    tensorrt="1.7.1.116",
    targets=("8.6", "12.0 and later"),
    plan_sha256="ab" * 32,
    plan_bytes=123,
    source=Source("/models/m.onnx", "cd" * 32, (ExternalData("m.onnx.data", 7), ExternalData("more.bin", 0))),
    plugins=Plugins("/opt/libgraphopt_plugins.so", "ef" * 32, "0.1.0", None),
    inputs=(Tensor("x", "HALF", (-1, 64)), Tensor("scalar", "INT64", ())),
    outputs=(Tensor("y", "FLOAT", (-1, -1)),),
    profiles=(Profile("prefill", {"x": Range((0, 64), (2, 64), (4, 64))}), Profile("decode", {})),
    plugin_layers=2,
    custom_ops={"MixQLinear": 2},
    layers={"CONSTANT": 1, "PLUGIN_V3": 2},
    workspace_bytes=None,
    build_seconds=1.5,
    peak_host_bytes=10**9,
)
BARE = replace(FULL, plugins=None, profiles=(), source=Source("m.onnx", "00", ()), workspace_bytes=1 << 30)


def write(tmp_path: Path, data: Any) -> Path:
    plan = tmp_path / "m.plan"
    manifest.path_for(plan).write_text(data if isinstance(data, str) else json.dumps(data))
    return plan


@pytest.mark.parametrize("original", [FULL, BARE], ids=["full", "bare"])
def test_round_trip(original: Manifest, tmp_path: Path) -> None:
    assert manifest.read(write(tmp_path, original.to_dict())) == original


def test_its_name_extends_the_plan() -> None:
    assert manifest.path_for(Path("a/m.plan")) == Path("a/m.plan.json")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"m\.plan has no manifest m\.plan\.json; copy it beside the plan"):
        manifest.read(tmp_path / "m.plan")


@pytest.mark.parametrize("data", ["{", "", "\x00"])
def test_broken_json_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read manifest .*m\.plan\.json.*; build the plan again"):
        manifest.read(write(tmp_path, data))


@pytest.mark.parametrize("data", [{**FULL.to_dict(), "format": 2}, {}, []])
def test_other_formats_are_refused(data: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has format (2|None), this graphopt reads 1; build the plan again"):
        manifest.read(write(tmp_path, data))


@pytest.mark.parametrize("key", sorted(set(FULL.to_dict()) - {"format"}))
def test_every_entry_is_needed(key: str, tmp_path: Path) -> None:
    data = FULL.to_dict()
    del data[key]
    with pytest.raises(EngineError, match=rf"manifest .* is damaged \(.*{key}.*\)"):
        manifest.read(write(tmp_path, data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(surprise=1),
        lambda d: d["plugins"].pop("sha256"),
        lambda d: d["profiles"][0]["ranges"]["x"].pop("opt"),
        lambda d: d["inputs"][0].pop("shape"),
    ],
)
def test_damaged_entries_are_refused(damage: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    data = json.loads(json.dumps(FULL.to_dict()))
    damage(data)
    with pytest.raises(EngineError, match="is damaged"):
        manifest.read(write(tmp_path, data))
