"""Recipes: validation with the nearest known key, order, presets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from graphopt.core.recipe import CacheRule, Recipe, validate
from graphopt.errors import RecipeError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    threshold: float = Field(6.0, gt=0)
    select: Literal["rms", "top"] = "rms"


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: int = 8
    outliers: Inner = Inner()
    groups: dict[str, Inner] = {}
    maybe: Inner | None = None
    several: list[Inner] = []


SCHEMES: Any = {
    "toy": SimpleNamespace(
        name="toy", config=Config, presets={"toy-w8": {"bits": 8}, "toy-w4": {"bits": 4, "outliers": {"threshold": 3}}}
    ),
    "other": SimpleNamespace(name="other", config=Inner, presets={"other": {}}),
}
ONE = "version: 1\nlayers: [{match: '*', scheme: toy}]\n"
NAMES = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attn.q_proj", "mlp.down_proj")] + ["lm_head"]


class CacheConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    capacity: int | None = None
    bits: int = 16


CACHES: Any = {
    "plain": SimpleNamespace(name="plain", config=CacheConfig, presets={"plain": {}}),
    "coded": SimpleNamespace(name="coded", config=CacheConfig, presets={"c4": {"bits": 4}, "c2": {"bits": 2}}),
}


def recipe(text: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path, SCHEMES, CACHES)


def refusal(text: str, tmp_path: Path) -> str:
    with pytest.raises(RecipeError) as e:
        recipe(text, tmp_path)
    message = str(e.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "r.yaml" in message
    return message


GOOD = """
version: 1
layers:
  - match: [lm_head, "*.1.*"]
    scheme: none
  - match: "*down_proj"
    scheme: toy
    settings: {bits: 4, outliers: {threshold: 2.5, select: top}}
  - match: "*q_proj"
    scheme: other
"""


def test_first_match_decides(tmp_path: Path) -> None:
    assigned = recipe(GOOD, tmp_path).assign(NAMES)
    assert {name: rule.scheme for name, rule in assigned.items()} == {
        "model.layers.0.attn.q_proj": "other",
        "model.layers.0.mlp.down_proj": "toy",
        "model.layers.1.attn.q_proj": None,
        "model.layers.1.mlp.down_proj": None,
        "model.layers.2.attn.q_proj": "other",
        "model.layers.2.mlp.down_proj": "toy",
        "lm_head": None,
    }
    assert assigned["model.layers.0.mlp.down_proj"].config == Config(
        bits=4, outliers=Inner(threshold=2.5, select="top")
    )
    assert assigned["lm_head"].config is None


def test_names_that_nothing_matches_are_left_out(tmp_path: Path) -> None:
    text = 'version: 1\nlayers: [{match: "*q_proj", scheme: toy}]'
    assert all(name.endswith("q_proj") for name in recipe(text, tmp_path).assign(NAMES))


def test_glob_that_matches_nothing(tmp_path: Path) -> None:
    text = 'version: 1\nlayers: [{match: ["*q_proj", "*k_porj"], scheme: toy}]'
    with pytest.raises(
        RecipeError,
        match=r"r.yaml: '\*k_porj' matches none of the 7 linears \(model.layers.0.attn.q_proj, .*graphopt inspect",
    ):
        recipe(text, tmp_path).assign(NAMES)


def test_star_may_match_nothing(tmp_path: Path) -> None:
    assert recipe('version: 1\nlayers: [{match: "*", scheme: toy}]', tmp_path).assign([]) == {}


def test_globs_are_case_sensitive_everywhere(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="matches none"):
        recipe('version: 1\nlayers: [{match: "LM_HEAD", scheme: toy}]', tmp_path).assign(NAMES)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("{bist: 4}", "layers.0.settings: unknown key 'bist'; did you mean 'bits'?"),
        ("{outliers: {treshold: 4}}", "unknown key 'outliers.treshold'; did you mean 'threshold'?"),
        ("{zzz: 4}", "unknown key 'zzz'; known: bits, groups, maybe, outliers, several"),
        ("{maybe: {treshold: 4}}", "unknown key 'maybe.treshold'; did you mean 'threshold'?"),
        ("{several: [{}, {slect: top}]}", "unknown key 'several.1.slect'; did you mean 'select'?"),
        ("{groups: {q: {slect: top}}}", "unknown key 'groups.q.slect'; did you mean 'select'?"),
        ("{bits: eight}", "bits: Input should be a valid integer"),
        ("{outliers: {threshold: 0}}", "outliers.threshold: Input should be greater than 0 (got 0)"),
        ("{outliers: {select: all}}", "outliers.select: Input should be 'rms' or 'top' (got 'all')"),
        ("[1, 2]", "layers.0.settings: Input should be a valid dictionary"),
        ("{1: 2}", "layers.0.settings"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path: Path, settings: str, part: str) -> None:
    assert part in refusal(f'version: 1\nlayers: [{{match: "*", scheme: toy, settings: {settings}}}]', tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "expected a mapping with the keys version, layers, kv_cache, got None"),
        ("just words", "expected a mapping"),
        ("- 1\n- 2", "expected a mapping"),
        ("version: 1", "layers: Field required"),
        ("layers: [{match: '*', scheme: toy}]", "version: Field required"),
        ("version: 1\nlayers: []", "layers: List should have at least 1 item"),
        ("version: 2\nlayers: [{match: '*', scheme: toy}]", "version 2 is not known; this graphopt reads version 1"),
        ("version: 1\nlayer: []", "unknown key 'layer'; did you mean 'layers'?"),
        ("version: 1\nlayers: [{mach: '*', scheme: toy}]", "layers.0"),
        ("version: 1\nlayers: [{match: '*', scheme: tyo}]", "layers.0: unknown scheme 'tyo'; did you mean 'toy'?"),
        ("version: 1\nlayers: [{match: '*', scheme: qq}]", "unknown scheme 'qq'; known: none, other, toy"),
        ("version: 1\nlayers: [{match: '*', scheme: none, settings: {bits: 4}}]", "scheme 'none' takes no settings"),
        ("version: 1\nlayers: [{match: [], scheme: toy}]", "layers.0.match: List should have at least 1 item"),
        ("version: 1\nlayers: [{match: 7, scheme: toy}]", "layers.0.match"),
        (f"{ONE}kv_cache: plain", "kv_cache"),
        (f"{ONE}kv_cache: {{format: plian}}", "kv_cache: unknown format 'plian'; did you mean 'plain'?"),
        (f"{ONE}kv_cache: {{formt: plain}}", "unknown key 'kv_cache.formt'; did you mean 'format'?"),
        (f"{ONE}kv_cache: {{format: plain, settings: {{capacty: 3}}}}", "kv_cache.settings: unknown key 'capacty'"),
        ("version: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("version: 1\nlayers: !!python/object:os.system [{}]", "is not YAML"),
        ("version: 1\n\tlayers: 3", "is not YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(text, tmp_path)


def test_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read recipe .*no.yaml: No such file"):
        Recipe.load(tmp_path / "no.yaml", SCHEMES)
    with pytest.raises(RecipeError, match="cannot read recipe"):
        Recipe.load(tmp_path, SCHEMES)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(RecipeError, match="is not YAML"):
        Recipe.load(tmp_path / "b.yaml", SCHEMES)


def test_presets() -> None:
    plain = Recipe.preset("toy-w4", SCHEMES)
    assert plain.assign(NAMES)["lm_head"].config == Config(bits=4, outliers=Inner(threshold=3))
    careful = Recipe.preset("toy-w4", SCHEMES, exclude=["lm_head"]).assign(NAMES)
    assert careful["lm_head"].scheme is None
    assert careful[NAMES[0]].scheme == "toy"
    with pytest.raises(RecipeError, match="unknown preset 'toy-w5'; did you mean 'toy-w"):
        Recipe.preset("toy-w5", SCHEMES)


def test_presets_of_layers() -> None:
    schemes = {
        "toy": SimpleNamespace(
            name="toy",
            config=Config,
            presets={
                "toy-mixed": [
                    {"match": ["*lm_head*", "*no model has this*"], "settings": {"bits": 8}},
                    {"match": "*", "settings": {"bits": 4}},
                ]
            },
        )
    }
    mixed = Recipe.preset("toy-mixed", schemes)
    assert {name: rule.config.bits for name, rule in mixed.assign(NAMES).items()} == {
        name: 8 if name == "lm_head" else 4 for name in NAMES
    }
    without = Recipe.preset("toy-mixed", schemes, exclude=["lm_head"])
    assert without.assign(NAMES)["lm_head"].scheme is None
    with pytest.raises(RecipeError, match="'lm_haed' matches none"):
        Recipe.preset("toy-mixed", schemes, exclude=["lm_haed"]).assign(NAMES)


def test_a_cache(tmp_path: Path) -> None:
    assert recipe(ONE, tmp_path).cache is None
    chosen = recipe(f"{ONE}kv_cache: {{format: coded, settings: {{capacity: 8}}}}", tmp_path)
    assert chosen.cache == CacheRule("coded", CacheConfig(capacity=8), "coded")
    assert chosen.assign(NAMES)["lm_head"].scheme == "toy"


def test_presets_of_caches() -> None:
    plain = Recipe.preset("toy-w8", SCHEMES)
    changed = plain.with_cache("c4", {"capacity": 9}, CACHES)
    assert changed.cache == CacheRule("coded", CacheConfig(bits=4, capacity=9), "c4")
    assert plain.cache is None
    with pytest.raises(RecipeError, match="unknown key-value cache 'plian'; did you mean 'plain'"):
        plain.with_cache("plian", {}, CACHES)
    with pytest.raises(RecipeError, match=r"key-value cache c2\.settings: unknown key 'x'"):
        plain.with_cache("c2", {"x": 1}, CACHES)


def test_the_preset_that_leaves_linears_alone() -> None:
    assert {rule.scheme for rule in Recipe.preset("none", SCHEMES).assign(NAMES).values()} == {None}


def test_validate_says_where() -> None:
    assert validate(Inner, {"threshold": 2}, "here").threshold == 2
    with pytest.raises(RecipeError, match=r"^here: unknown key 'x'; known: select, threshold$"):
        validate(Inner, {"x": 1}, "here")
    with pytest.raises(RecipeError, match=r"^here: threshold: .* \(got '\w+\.\.\.\w+'\)$"):
        validate(Inner, {"threshold": "x" * 10_000}, "here")


def test_linears_excluded_for_a_reason_come_first() -> None:
    excluded = Recipe.preset("toy-w8", SCHEMES).excluding({"model.layers.1.attn.q_proj": "slower: 12 us, not 9"})
    assigned = excluded.assign([*NAMES, "[odd]*"])
    assert [(n, r.reason) for n, r in assigned.items() if r.scheme is None] == [(NAMES[2], "slower: 12 us, not 9")]
    odd = Recipe.preset("toy-w8", SCHEMES).excluding({"[odd]*": "slower"}).assign([*NAMES, "[odd]*", "o"])
    assert [n for n, r in odd.items() if r.scheme is None] == ["[odd]*"]
    with pytest.raises(RecipeError, match=r"'gone' matches none"):
        excluded.excluding({"gone": "slower"}).assign(NAMES)


def test_a_recipe_is_called_by_its_preset_or_its_file(tmp_path: Path) -> None:
    assert Recipe.preset("toy-w8", SCHEMES).name == "toy-w8"
    assert recipe("version: 1\nlayers: [{match: '*', scheme: toy}]\n", tmp_path).name == "r"
