import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.models.bert import BertConfig
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights


def test_a_tensor_depends_on_seed_and_name_only(tiny: LlamaConfig) -> None:
    names = list(tiny.weight_shapes())
    forward, backward = RandomWeights(tiny, 3), RandomWeights(tiny, 3)
    expected = {name: forward.tensor(name) for name in names}
    for name in reversed(names):
        np.testing.assert_array_equal(backward.tensor(name), expected[name])
    q, k = (expected[f"model.layers.0.self_attn.{p}_proj.weight"] for p in "qk")
    assert not np.array_equal(q[: len(k)], k)
    assert not np.array_equal(RandomWeights(tiny, 4).tensor(names[0]), expected[names[0]])


def test_sizes_are_realistic(tiny: LlamaConfig) -> None:
    weights = RandomWeights(tiny)
    matrix = weights.tensor("model.layers.0.mlp.down_proj.weight")
    assert matrix.dtype == np.float32
    assert matrix.shape == (256, 512)
    assert matrix.std() == pytest.approx(0.02, rel=0.01)
    assert weights.tensor("model.norm.weight").mean() == pytest.approx(1, abs=0.05)


def test_outliers_sit_in_the_same_channels_of_every_norm(tiny: LlamaConfig) -> None:
    weights = RandomWeights(tiny, outliers=3, outlier_scale=30)
    tops = [
        set(np.argsort(weights.tensor(name))[-3:].tolist())
        for name in tiny.weight_shapes()
        if name.endswith("norm.weight")
    ]
    assert all(top == tops[0] for top in tops)
    norm = weights.tensor("model.norm.weight")
    assert np.sort(norm)[-3] > 10 * np.sort(norm)[-4]
    rows = np.abs(weights.tensor("model.layers.1.mlp.up_proj.weight")).max(axis=1)
    assert (rows > 10 * np.median(rows)).sum() == 3


def test_encoders_have_outliers_too() -> None:
    config = BertConfig(50, 32, 64, 1, 2)
    rows = np.abs(RandomWeights(config, outliers=2).tensor("encoder.layer.0.intermediate.dense.weight")).max(axis=1)
    assert (rows > 5 * np.median(rows)).sum() == 2


def test_refuses_unknown_names_and_too_many_outliers(tiny: LlamaConfig) -> None:
    with pytest.raises(ModelError, match=r"did you mean 'model\.norm\.weight'"):
        RandomWeights(tiny).tensor("model.norm.weights")
    with pytest.raises(ModelError, match="257 outlier channels do not fit into a model of width 256"):
        RandomWeights(tiny, outliers=257)
