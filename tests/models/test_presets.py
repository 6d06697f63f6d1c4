import math

import pytest

from graphopt.errors import ModelError
from graphopt.models.presets import LLAMA_PRESETS, llama_config

#: Parameters in millions, as published.
PUBLISHED = {
    "smollm2-135m": 134.5,
    "tinyllama-1.1b": 1100,
    "llama-2-7b": 6738,
    "llama-2-13b": 13016,
    "llama-2-70b": 68977,
    "llama-3-8b": 8030,
}


@pytest.mark.parametrize("name", LLAMA_PRESETS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    parameters = sum(math.prod(shape) for shape in LLAMA_PRESETS[name].weight_shapes().values())
    assert parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_sizes_change_and_follow() -> None:
    config = llama_config(hidden_size=512, num_hidden_layers=3)
    assert (config.head_dim, config.intermediate_size, config.num_hidden_layers) == (128, 1536, 3)
    assert llama_config("llama-3-8b", num_hidden_layers=1, head_dim=None).head_dim == 128
    assert llama_config(num_attention_heads=8).head_dim == 32


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="no preset 'llama-2-7'; did you mean 'llama-2-7b'"):
        llama_config("llama-2-7")
    with pytest.raises(ModelError, match="hidden size 100 is not a multiple of 3 heads"):
        llama_config(hidden_size=100, num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(ModelError, match="num_attention_heads is 0"):
        llama_config(num_attention_heads=0)
