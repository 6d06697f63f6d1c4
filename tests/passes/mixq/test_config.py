"""Settings of MixQ through recipes: validated, and refused with the nearest known key."""

import pytest

from graphopt.core.recipe import Recipe
from graphopt.errors import RecipeError
from graphopt.passes.mixq import SCHEME
from graphopt.passes.mixq.config import PRESETS, MixQConfig

SCHEMES = {SCHEME.name: SCHEME}


def recipe(settings: object) -> Recipe:
    data = {"version": 1, "layers": [{"match": "*", "scheme": "mixq", "settings": settings}]}
    return Recipe.parse(data, SCHEMES, "test")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    config = Recipe.preset(name, SCHEMES).rules[-1].config
    assert isinstance(config, MixQConfig)
    assert MixQConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outlier": {}}, r"unknown key 'outlier'; did you mean 'outliers'\?"),
        ({"outliers": {"treshold": 3}}, r"unknown key 'outliers.treshold'; did you mean 'threshold'\?"),
        ({"outliers": {"capacity": 24}}, "multiple of 16"),
        ({"outliers": {"capacity": 0}}, "greater than or equal to 16"),
        ({"outliers": {"multiple": 0}}, "greater than 0"),
        ({"outliers": {"select": "best"}}, "'rms', 'threshold', 'top' or 'none'"),
        ({"bits": "w2a8"}, "'w8a8'"),
    ],
)
def test_wrong_settings_are_refused(settings: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(settings)
