import math
from dataclasses import replace
from typing import Any

import pytest

from graphopt.errors import ModelError
from graphopt.models.llama_config import LlamaConfig

HF = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_reads_a_hugging_face_configuration() -> None:
    config = LlamaConfig.from_hf(HF)
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (64, 8, 5e5)
    assert config.tie_word_embeddings
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias or config.rope_factors)


def test_both_spellings_of_rotary_settings_are_the_same() -> None:
    new = {k: v for k, v in HF.items() if k != "rope_theta"} | {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    assert LlamaConfig.from_hf(new) == LlamaConfig.from_hf({**HF, "rope_scaling": LLAMA3})


def test_llama3_frequencies_are_those_of_transformers() -> None:
    # transformers 5.23, ROPE_INIT_FUNCTIONS["llama3"] on this configuration: kept, blended and stretched frequencies.
    expected = {
        0: 1.0,
        8: 0.03760603070259094,
        13: 0.00483942124992609,
        14: 0.0032114461064338684,
        15: 0.0012905480107292533,
        16: 0.000429556705057621,
        17: 9.708286233944818e-05,
        18: 1.9461638657958247e-05,
        31: 9.418306490260875e-08,
    }
    frequencies = LlamaConfig.from_hf({**HF, "rope_scaling": LLAMA3}).inverse_frequencies()
    for j, value in expected.items():
        assert frequencies[j] == pytest.approx(value, rel=1e-6)  # theirs are float32


def test_linear_scaling_stretches_every_frequency() -> None:
    plain = LlamaConfig.from_hf(HF).inverse_frequencies()
    scaled = LlamaConfig.from_hf({**HF, "rope_scaling": {"type": "linear", "factor": 4.0}}).inverse_frequencies()
    assert scaled == pytest.approx([f / 4 for f in plain])
    assert plain[:2] == pytest.approx([1.0, 5e5 ** (-1 / 32)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": LLAMA3},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2", "head_dim": 32},
        {"tie_word_embeddings": False},
    ],
)
def test_round_trips_through_config_json(changes: dict[str, Any]) -> None:
    config = LlamaConfig.from_hf({**HF, **changes})
    assert LlamaConfig.from_hf(config.to_hf()) == config


def test_weight_shapes_follow_biases_and_tying() -> None:
    tied = LlamaConfig.from_hf({**HF, "num_hidden_layers": 2}).weight_shapes()
    assert len(tied) == 1 + 2 * 9 + 1
    assert tied["model.layers.1.self_attn.k_proj.weight"] == (512, 2048)
    qwen = LlamaConfig.from_hf({**HF, "model_type": "qwen2", "tie_word_embeddings": False}).weight_shapes()
    assert "model.layers.0.self_attn.q_proj.bias" in qwen
    assert "model.layers.0.self_attn.o_proj.bias" not in qwen
    assert qwen["lm_head.weight"] == (128256, 2048)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"model_type": "gpt_neox"}, "model_type 'gpt_neox'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 33}, "head_dim is 33"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ],
)
def test_refuses_what_the_decoder_lacks(changes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ModelError, match=culprit):
        LlamaConfig.from_hf({**HF, **changes})


def test_names_the_missing_key() -> None:
    with pytest.raises(ModelError, match="'intermediate_size' is missing"):
        LlamaConfig.from_hf({k: v for k, v in HF.items() if k != "intermediate_size"})


def test_refuses_what_config_json_cannot_say() -> None:
    config = LlamaConfig.from_hf(HF)
    with pytest.raises(ModelError, match="o_proj alone"):
        replace(config, o_bias=True)
    with pytest.raises(ModelError, match="3 rope_factors were given for 32"):
        replace(config, rope_factors=(1.0, 2.0, 3.0))
