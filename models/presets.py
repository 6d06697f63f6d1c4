"""Sizes of well-known decoders, for seeded random models of realistic shape."""

__all__ = ["LLAMA_PRESETS", "llama_config"]

from dataclasses import replace
from typing import Any

from graphopt.errors import ModelError, nearest
from graphopt.models.llama_config import LlamaConfig

#: Published configurations (model cards on the Hugging Face hub).
LLAMA_PRESETS = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, rope_theta=1e5, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, head_dim=64,
    ),
    "llama-2-7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, head_dim=128, max_position_embeddings=4096,
    ),
    "llama-2-13b": LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=40, head_dim=128, max_position_embeddings=4096,
    ),
    "llama-2-70b": LlamaConfig(
        vocab_size=32000, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096,
    ),
    "llama-3-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, rope_theta=5e5, max_position_embeddings=8192,
    ),
}  # fmt: skip

_SMALL = LlamaConfig(
    vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip


def llama_config(preset: str | None = None, **sizes: Any) -> LlamaConfig:
    """Return the configuration of a preset, or of a small model, with some sizes changed.

    Args:
        preset: a key of `LLAMA_PRESETS`; None for 2 layers of width 256.
        sizes: fields of `LlamaConfig`; None leaves a field as it is. A changed ``hidden_size`` or
            ``num_attention_heads`` without ``head_dim`` gives head_dim = hidden_size / num_attention_heads, and a
            changed ``hidden_size`` without ``intermediate_size`` gives intermediate_size = 3 * hidden_size.

    Raises:
        ModelError: there is no such preset, or the sizes do not fit together.
    """
    if preset is not None and preset not in LLAMA_PRESETS:
        raise ModelError(f"no preset '{preset}'{nearest(preset, LLAMA_PRESETS)}")
    base = LLAMA_PRESETS[preset] if preset else _SMALL
    given = {name: value for name, value in sizes.items() if value is not None}
    hidden = given.get("hidden_size", base.hidden_size)
    heads = given.get("num_attention_heads", base.num_attention_heads)
    if {"hidden_size", "num_attention_heads"} & given.keys() and "head_dim" not in given and heads > 0:
        if hidden % heads:
            raise ModelError(f"hidden size {hidden} is not a multiple of {heads} heads; give head_dim too")
        given["head_dim"] = hidden // heads
    if "hidden_size" in given:
        given.setdefault("intermediate_size", 3 * hidden)
    return replace(base, **given)
