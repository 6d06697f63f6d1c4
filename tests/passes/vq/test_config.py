"""Settings: every VQ<v, b, r> is one, and what cannot be is refused with the reason."""

import pytest

from graphopt.core.recipe import Recipe
from graphopt.errors import RecipeError
from graphopt.passes import SCHEMES
from graphopt.passes.vq.config import PRESETS, VQConfig


def test_presets_are_the_published_configurations() -> None:
    configs = {name: VQConfig.model_validate(settings) for name, settings in PRESETS.items()}
    sizes = {name: (c.vector, c.bits, c.residuals, c.tile) for name, c in configs.items()}
    assert sizes == {
        "vq-quip4": (8, 16, 2, 0),
        "vq-aqlm3": (8, 12, 2, 0),
        "vq-aqlm2": (8, 8, 2, 0),
        "vq-gptvq2": (4, 8, 1, 256),
    }


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"vector": 3}, "vector"),
        ({"bits": 17}, "bits"),
        ({"residuals": 5}, "residuals"),
        ({"tile": 100}, "tile 100 is no multiple of 16"),
        ({"codebook": "e8", "vector": 4}, "vector 8"),
        ({"codebook": "e8", "residuals": 3}, "1 or 2 residuals"),
        ({"vectr": 4}, "did you mean 'vector'"),
    ],
)
def test_what_cannot_be(settings: dict[str, object], part: str) -> None:
    data = {"version": 1, "layers": [{"match": "*", "scheme": "vq", "settings": settings}]}
    with pytest.raises(RecipeError) as e:
        Recipe.parse(data, SCHEMES, "recipe")
    assert part in str(e.value)
