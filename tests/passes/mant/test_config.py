"""Settings of M-ANT through recipes: validated, and refused with what to do."""

import pytest

from graphopt.core.recipe import Recipe
from graphopt.errors import RecipeError
from graphopt.passes.mant import Mant
from graphopt.passes.mant.config import PRESETS, MantConfig

SCHEMES = {Mant.name: Mant()}


def recipe(settings: object) -> Recipe:
    data = {"version": 1, "layers": [{"match": "*", "scheme": "mant", "settings": settings}]}
    return Recipe.parse(data, SCHEMES, "test")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    (config,) = (rule.config for rule in Recipe.preset(name, SCHEMES).rules)
    assert MantConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"one_pass": True}, "one_pass is for w4a8"),
        ({"exact": True}, "exact is for w4a8"),
        ({"activations": "group"}, "activations are scaled for w4a8 alone"),
        ({"bits": "w4a8", "types": "nf4"}, "nf4 has no exact int8 form"),
        ({"group": 48}, "group"),
        ({"typs": "mant"}, "types"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(settings)
