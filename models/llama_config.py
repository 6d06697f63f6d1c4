"""Sizes and constants of a Llama-family decoder, and the names and shapes of its weights."""

__all__ = ["LlamaConfig"]

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.errors import ModelError, nearest

#: Values of ``model_type`` in a Hugging Face config.json whose layers are exactly this decoder.
_HF_MODEL_TYPES = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class LlamaConfig:
    """A decoder with grouped-query attention, rotary embedding, RMSNorm and a SiLU-gated MLP.

    Field names are those of Hugging Face's LlamaConfig.

    Attributes:
        vocab_size: rows of the token embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads; a multiple of ``num_key_value_heads``.
        num_key_value_heads: key and value heads.
        head_dim: channels per head, even; need not be hidden_size / num_attention_heads.
        rms_norm_eps: added to the mean square in every RMSNorm.
        rope_theta: base of the rotary frequencies theta^(-2j/head_dim).
        rope_factors: head_dim / 2 divisors of the rotary frequencies (long-context scaling), or empty for none.
        max_position_embeddings: context length the model was trained for, in tokens; informative.
        tie_word_embeddings: the head is the transposed token embedding.
        qkv_bias: q_proj, k_proj and v_proj have a bias.
        o_bias: o_proj has a bias.
        mlp_bias: gate_proj, up_proj and down_proj have a bias.

    Raises:
        ModelError: a size is not positive, or the sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e4
    rope_factors: tuple[float, ...] = ()
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < math.inf:
                raise ModelError(f"decoder configuration: {name} is {value}, but must be positive")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"decoder configuration: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ModelError(f"decoder configuration: head_dim is {self.head_dim}, but rotary embedding needs it even")
        if self.o_bias and not self.qkv_bias:
            raise ModelError("decoder configuration: a bias on o_proj alone is not supported; no known model has it")
        if self.rope_factors and len(self.rope_factors) != self.head_dim // 2:
            raise ModelError(
                f"decoder configuration: {len(self.rope_factors)} rope_factors were given for "
                f"{self.head_dim // 2} rotary frequencies"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Return the configuration that a Hugging Face ``config.json`` describes.

        Args:
            config: the parsed JSON, of either spelling of the rotary settings (``rope_theta`` + ``rope_scaling``, or
                ``rope_parameters``).

        Raises:
            ModelError: a required key is missing, or the model has a feature that this decoder lacks.
        """
        kind = config.get("model_type")
        if kind not in _HF_MODEL_TYPES:
            raise ModelError(
                f"config.json: model_type '{kind}' is not a Llama-family decoder{nearest(str(kind), _HF_MODEL_TYPES)}"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(f"config.json: hidden_act '{config['hidden_act']}' is not supported, only 'silu' is")
        if config.get("sliding_window") and config.get("use_sliding_window", kind == "mistral"):
            raise ModelError(
                "config.json: sliding_window attention is not supported; use a checkpoint with full attention"
            )
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            head_dim = int(config.get("head_dim") or hidden // heads)
            rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
            share = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1
            if share != 1:
                raise ModelError(f"config.json: partial_rotary_factor is {share}; only whole heads can be rotated")
            theta = float(config.get("rope_theta") or rope.get("rope_theta") or 1e4)
            biased = bool(config.get("attention_bias", False))
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=head_dim,
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                rope_theta=theta,
                rope_factors=_rope_factors(rope, theta, head_dim),
                max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=biased or kind == "qwen2",
                o_bias=biased,
                mlp_bias=bool(config.get("mlp_bias", False)),
            )
        except KeyError as e:
            raise ModelError(f"config.json: key {e} is missing; take it from the original checkpoint") from e

    def to_hf(self) -> dict[str, Any]:
        """Return the configuration as the contents of a ``config.json``."""
        fields = asdict(self)
        biased = fields.pop("qkv_bias"), fields.pop("o_bias")
        factors = list(fields.pop("rope_factors"))
        scaling = {"rope_scaling": {"rope_type": "factors", "factors": factors}} if factors else {}
        kind = "qwen2" if biased == (True, False) else "llama"
        return {"model_type": kind, "hidden_act": "silu", **fields, "attention_bias": all(biased), **scaling}

    def inverse_frequencies(self) -> list[float]:
        """Rotary frequencies per position, head_dim / 2 values in radians: theta^(-2j/head_dim) / factor_j."""
        factors = self.rope_factors or (1.0,) * (self.head_dim // 2)
        return [self.rope_theta ** (-2 * j / self.head_dim) / factor for j, factor in enumerate(factors)]

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names (Hugging Face) and shapes of all weights in the order of use; matrices are [out, in]."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
            for name, rows, columns, bias in (
                ("self_attn.q_proj", q, hidden, self.qkv_bias),
                ("self_attn.k_proj", kv, hidden, self.qkv_bias),
                ("self_attn.v_proj", kv, hidden, self.qkv_bias),
                ("self_attn.o_proj", hidden, q, self.o_bias),
                ("mlp.gate_proj", ffn, hidden, self.mlp_bias),
                ("mlp.up_proj", ffn, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, ffn, self.mlp_bias),
            ):
                if name == "mlp.gate_proj":
                    shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
                shapes[f"{layer}.{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{layer}.{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


def _rope_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    """Divisors of the rotary frequencies for the scaling that ``rope`` names; empty for none.

    "llama3" is the smooth rule of Llama 3.1: wavelengths above original context / low_freq_factor are stretched by
    ``factor``, those below original context / high_freq_factor are kept, linear in the frequency between.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    pairs = head_dim // 2
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * pairs
    if kind == "factors":
        return tuple(float(f) for f in rope["factors"])
    if kind != "llama3":
        raise ModelError(
            f"config.json: rope_type '{kind}' is not supported{nearest(kind, ['default', 'linear', 'llama3'])}"
        )
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    factors = []
    for j in range(pairs):
        cycles = context * theta ** (-2 * j / head_dim) / (2 * math.pi)  # turns within the original context
        smooth = min(max((cycles - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(factors)
