"""Settings of MixQ through recipes: validated, and refused with the nearest known key."""

import pytest

from graphopt.core.recipe import Recipe
from graphopt.errors import RecipeError
from graphopt.passes.mixq import SCHEME
from graphopt.passes.mixq.config import PRESETS, MixQConfig, OutlierConfig

SCHEMES = {SCHEME.name: SCHEME}


def recipe(settings: object) -> Recipe:
    data = {"version": 1, "layers": [{"match": "*", "scheme": "mixq", "settings": settings}]}
    return Recipe.parse(data, SCHEMES, "test")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    configs = [rule.config for rule in Recipe.preset(name, SCHEMES).rules]
    assert all(MixQConfig.model_validate(config.model_dump()) == config for config in configs)
    assert f"mixq-{configs[-1].bits}" == name


def test_what_is_not_given_follows_from_the_bits() -> None:
    eight, four = MixQConfig(), MixQConfig(bits="w4a8")
    assert (eight.group, eight.rounding, eight.clip) == (0, "nearest", False)
    assert (four.group, four.rounding, four.clip) == (64, "auto", True)
    assert (four.weight_bits, four.activation_bits) == (4, 8)
    plain = MixQConfig(bits="w4a4", group=0, rounding="nearest", clip=False)
    assert (plain.group, plain.rounding, plain.clip, plain.activation_bits) == (0, "nearest", False, 4)


def test_the_4_bit_presets_keep_8_bits_where_they_matter() -> None:
    names = ["layers.0.q_proj", "layers.0.o_proj", "layers.0.up_proj", "layers.0.mlp.down_proj", "lm_head"]
    bits = {
        preset: [rule.config.bits for rule in Recipe.preset(preset, SCHEMES).assign(names).values()]
        for preset in ("mixq-w4a8", "mixq-w4a4")
    }
    assert bits["mixq-w4a8"] == ["w4a8", "w4a8", "w4a8", "w4a8", "w8a8"]
    assert bits["mixq-w4a4"] == ["w4a4", "w8a8", "w4a4", "w8a8", "w8a8"]


def test_online_prediction_is_for_what_is_not_calibrated_unless_told() -> None:
    auto = OutlierConfig(online="auto")
    assert auto.predicts(calibrated=False) and not auto.predicts(calibrated=True)
    assert not OutlierConfig(online="auto", select="none").predicts(calibrated=False)
    assert not OutlierConfig(online="auto", sigma_rms=0).predicts(calibrated=False)
    assert OutlierConfig(online=True, select="none").predicts(calibrated=True)
    assert not OutlierConfig(online=False).predicts(calibrated=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outlier": {}}, r"unknown key 'outlier'; did you mean 'outliers'\?"),
        ({"outliers": {"treshold": 3}}, r"unknown key 'outliers.treshold'; did you mean 'threshold'\?"),
        ({"outliers": {"capacity": 24}}, "multiple of 16"),
        ({"outliers": {"capacity": 0}}, "greater than or equal to 16"),
        ({"outliers": {"multiple": 0}}, "greater than 0"),
        ({"outliers": {"online": "yes please"}}, "online"),
        ({"outliers": {"online": True, "sigma_rms": 0}}, "online prediction needs sigma or sigma_rms above 0"),
        ({"outliers": {"sigma": -1}}, "greater than or equal to 0"),
        ({"outliers": {"sigma_rms": float("inf")}}, "finite"),
        ({"outliers": {"select": "best"}}, "'rms', 'threshold', 'top' or 'none'"),
        ({"bits": "w2a8"}, "'w8a8', 'w4a8' or 'w4a4'"),
        ({"bits": "w4a8", "group": 32}, "0, 64 or 128"),
        ({"group": 64}, "group is for 4-bit weights; remove it"),
        ({"rounding": "best"}, "'nearest', 'gptq' or 'auto'"),
        ({"bits": "w4a8", "damping": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(settings: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(settings)
