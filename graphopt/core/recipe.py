"""Recipes: which linears get which scheme, with which settings.

A recipe is an ordered list of rules; the first whose glob matches a linear's name decides. In YAML::

    version: 1
    layers:
      - match: ["*lm_head*", "*.embed*"]
        scheme: none
      - match: "*"
        scheme: mixq
        settings:
          outliers: {select: rms, multiple: 6.0, capacity: 64}
    kv_cache:
      format: static
      settings: {capacity: 4096}

Without ``kv_cache`` the cache stays as it is. Settings are validated by the scheme or format. A key
that nobody knows is refused, with the nearest one that somebody does.
"""

__all__ = ["CacheRule", "Recipe", "Rule", "validate"]

import fnmatch
import glob
import itertools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from graphopt.core.cache import CacheFormat
from graphopt.core.scheme import Scheme
from graphopt.errors import RecipeError, nearest

#: The scheme name that leaves a linear as it is.
NONE = "none"
_PRESET = "preset "
T = TypeVar("T", bound=BaseModel)


def validate(kind: type[T], data: Any, where: str) -> T:
    """Return ``data`` as a ``kind``.

    Raises:
        RecipeError: the first thing that is wrong, named by its path below ``where``; unknown keys come with the
            nearest known one.
    """
    if not isinstance(data, Mapping):
        keys = ", ".join(kind.model_fields)
        raise RecipeError(f"{where}: expected a mapping with the keys {keys}, got {_shown(data)}")
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        # A misspelt key explains a missing one, so it comes first.
        error = min(e.errors(), key=lambda error: error["type"] != "extra_forbidden")
        path = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = _known_keys(kind, error["loc"][:-1])
            raise RecipeError(f"{where}: unknown key '{path}'{nearest(str(error['loc'][-1]), known)}") from None
        raise RecipeError(f"{where}: {path or 'settings'}: {error['msg']} (got {_shown(error['input'])})") from None


def _shown(value: Any) -> str:
    """Return ``value`` short enough for a message."""
    return reprlib.repr(value)


def _known_keys(kind: Any, path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model reached from ``kind`` by ``path``."""
    for part in path:
        if part not in kind.model_fields:
            continue  # a position in a list, a key of a dict or the tag of a union
        annotation = kind.model_fields[part].annotation
        arguments = [annotation, *getattr(annotation, "__args__", ())]
        nested = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    match: list[str] = Field(min_length=1)
    scheme: str
    settings: dict[str, Any] = {}

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class _Cache(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: str
    settings: dict[str, Any] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: int
    layers: list[_Layer] = Field(min_length=1)
    kv_cache: _Cache | None = None


@dataclass(frozen=True)
class CacheRule:
    """A format of the key-value cache and its settings; ``name`` is what it was asked for as."""

    format: str
    config: Any
    name: str


@dataclass(frozen=True)
class Rule:
    """One entry: globs over linear names, and a scheme with its settings (both None: leave the linear alone).

    A glob that matches nothing is an error, unless ``optional``: presets name layers that not every model has.
    ``reason`` says why, where the rule was not written by a person.
    """

    match: tuple[str, ...]
    scheme: str | None
    config: Any
    optional: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Recipe:
    """An ordered, validated list of rules, and what becomes of the key-value cache (None: it stays as it is)."""

    rules: tuple[Rule, ...]
    source: str
    cache: CacheRule | None = None

    @property
    def name(self) -> str:
        """What results call the recipe: its preset, or its file without folder and ending."""
        return self.source.removeprefix(_PRESET) if self.source.startswith(_PRESET) else Path(self.source).stem

    @property
    def quantizes(self) -> bool:
        """Whether any linear is to go through a scheme."""
        return any(rule.scheme is not None for rule in self.rules)

    def excluding(self, reasons: Mapping[str, str]) -> "Recipe":
        """Return this recipe, but with the linears named in ``reasons`` left alone, each for its reason."""
        rules = (Rule((glob.escape(name),), None, None, reason=reason) for name, reason in reasons.items())
        return replace(self, rules=(*rules, *self.rules))

    @classmethod
    def load(
        cls, path: Path, schemes: Mapping[str, Scheme], caches: Mapping[str, CacheFormat] | None = None
    ) -> "Recipe":
        """Read a YAML recipe.

        Raises:
            RecipeError: the file is missing, not YAML, of another version, or names something unknown.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise RecipeError(f"cannot read recipe {path}: {e.strerror or e}") from e
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise RecipeError(f"recipe {path} is not YAML: {str(e).splitlines()[0]}") from e
        return cls.parse(data, schemes, str(path), caches)

    @classmethod
    def parse(
        cls, data: Any, schemes: Mapping[str, Scheme], source: str, caches: Mapping[str, CacheFormat] | None = None
    ) -> "Recipe":
        """Validate recipe data (as YAML gives it)."""
        file = validate(_File, data, source)
        if file.version != 1:
            raise RecipeError(f"{source}: version {file.version} is not known; this graphopt reads version 1")
        rules = []
        for i, layer in enumerate(file.layers):
            where = f"{source}: layers.{i}"
            if layer.scheme == NONE:
                if layer.settings:
                    raise RecipeError(f"{where}: scheme 'none' takes no settings; remove them")
                rules.append(Rule(tuple(layer.match), None, None))
                continue
            if layer.scheme not in schemes:
                raise RecipeError(f"{where}: unknown scheme '{layer.scheme}'{nearest(layer.scheme, [*schemes, NONE])}")
            config = validate(schemes[layer.scheme].config, layer.settings, f"{where}.settings")
            rules.append(Rule(tuple(layer.match), layer.scheme, config))
        recipe = cls(tuple(rules), source)
        if file.kv_cache is None:
            return recipe
        return recipe._with_format(file.kv_cache.format, file.kv_cache.settings, caches or {}, f"{source}: kv_cache")

    def with_cache(self, preset: str, settings: Mapping[str, Any], caches: Mapping[str, CacheFormat]) -> "Recipe":
        """Return this recipe with the cache of ``preset``, whose settings ``settings`` change.

        Raises:
            RecipeError: no format has a preset of that name, or a setting is not its.
        """
        presets = {p: (c.name, values) for c in caches.values() for p, values in c.presets.items()}
        if preset not in presets:
            raise RecipeError(f"unknown key-value cache '{preset}'{nearest(preset, presets)}")
        name, values = presets[preset]
        found = self._with_format(name, {**values, **settings}, caches, f"key-value cache {preset}")
        assert found.cache is not None
        return replace(found, cache=replace(found.cache, name=preset))

    def _with_format(
        self, name: str, settings: Mapping[str, Any], caches: Mapping[str, CacheFormat], where: str
    ) -> "Recipe":
        if name not in caches:
            raise RecipeError(f"{where}: unknown format '{name}'{nearest(name, caches)}")
        config = validate(caches[name].config, settings, f"{where}.settings")
        return replace(self, cache=CacheRule(name, config, name))

    @classmethod
    def preset(cls, name: str, schemes: Mapping[str, Scheme], exclude: Sequence[str] = ()) -> "Recipe":
        """Return the recipe of a preset: ``exclude`` globs are left alone, everything else gets the preset.

        A preset is the settings of every linear, or a list of layers (``match``, ``settings``) as a recipe has them;
        "none" leaves every linear alone.

        Raises:
            RecipeError: no scheme has a preset of that name.
        """
        if name == NONE:
            return cls((Rule(("*",), None, None),), "preset none")
        presets = {p: (s, settings) for s in schemes.values() for p, settings in s.presets.items()}
        if name not in presets:
            raise RecipeError(f"unknown preset '{name}'{nearest(name, [*presets, NONE])}")
        scheme, preset = presets[name]
        own = [{"match": "*", "settings": preset}] if isinstance(preset, Mapping) else preset
        layers: list[dict[str, Any]] = [{"match": list(exclude), "scheme": NONE}] if exclude else []
        recipe = cls.parse(
            {"version": 1, "layers": [*layers, *({**layer, "scheme": scheme.name} for layer in own)]},
            schemes,
            f"{_PRESET}{name}",
        )
        rules = (replace(rule, optional=i >= len(layers)) for i, rule in enumerate(recipe.rules))
        return cls(tuple(rules), recipe.source)

    def assign(self, names: Sequence[str]) -> dict[str, Rule]:
        """Return the deciding rule for each name that any rule matches.

        Raises:
            RecipeError: a glob matches no name at all (so a typo cannot pass unseen).
        """
        for rule in self.rules:
            for pattern in () if rule.optional else rule.match:
                if pattern != "*" and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                    raise RecipeError(
                        f"{self.source}: '{pattern}' matches none of the {len(names)} linears "
                        f"({shown}); 'graphopt inspect' lists their names"
                    )
        assigned: dict[str, Rule] = {}
        for name in names:
            deciding = (r for r in self.rules if any(fnmatch.fnmatchcase(name, g) for g in r.match))
            assigned.update((name, rule) for rule in itertools.islice(deciding, 1))
        return assigned
