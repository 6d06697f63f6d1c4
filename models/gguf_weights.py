"""Weights from a GGUF file (llama.cpp), dequantized one tensor at a time."""

__all__ = ["GgufWeights"]

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError, nearest
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import check_all_read

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_ARCHITECTURES = ("llama", "qwen2")


class GgufWeights:
    """A Llama-family model in a GGUF file; a `WeightSource`.

    Every type that the ``gguf`` package dequantizes is accepted (F32, F16, BF16, Q4_0 .. Q8_0, K and IQ quants).
    llama.cpp stores the rows of q_proj and k_proj of Llama models so that rotary pairs are neighbours
    (x0, x1 | x2, x3 ...); `tensor` returns them in Hugging Face's order, in which a pair is (j, j + head_dim / 2).

    Args:
        path: the .gguf file.

    Raises:
        ModelError: the file is missing, damaged or truncated, or its architecture is not a Llama-family decoder, by its
            name or by norms and biases that such a one lacks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._reader = _open(self.path)
        self._tensors = {t.name: t for t in self._reader.tensors}
        self._architecture = str(self.metadata("general.architecture"))
        if self._architecture not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise ModelError(
                f"{self.path}: architecture '{self._architecture}' is not supported; supported are {known}"
            )
        self.config = self._read_config()
        check_all_read(self.path, self._tensors, {_gguf_name(name) for name in self.config.weight_shapes()})

    def metadata(self, key: str, default: Any = None) -> Any:
        """Return the value of a metadata key (a list for arrays), or ``default`` where the file lacks it."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return the float32 tensor of the Hugging Face name ``name``, [out, in], dequantized now."""
        import gguf

        stored = self._tensors.get(_gguf_name(name))
        if stored is None:
            have = [hf for hf in self.config.weight_shapes() if _gguf_name(hf) in self._tensors]
            raise ModelError(f"{self.path}: no tensor for '{name}'{nearest(name, have)}")
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as e:
            raise ModelError(
                f"{self.path}: tensor '{stored.name}' has type {stored.tensor_type.name}, which the gguf package "
                "cannot dequantize; convert the file to another type"
            ) from e
        if self._architecture == "llama" and ".self_attn.q_proj." in name:
            values = _unpermute(values, self.config.num_attention_heads)
        elif self._architecture == "llama" and ".self_attn.k_proj." in name:
            values = _unpermute(values, self.config.num_key_value_heads)
        return np.asarray(values, np.float32)

    def _read_config(self) -> LlamaConfig:
        if self._hyper("expert_count", 0):
            raise ModelError(f"{self.path}: mixture-of-experts models are not supported")
        hidden, heads = int(self._hyper("embedding_length")), int(self._hyper("attention.head_count"))
        head_dim = int(self._hyper("attention.key_length", hidden // heads))
        if int(self._hyper("rope.dimension_count", head_dim)) != head_dim:
            raise ModelError(f"{self.path}: rotary embedding over a part of the head is not supported")
        if int(self._hyper("attention.value_length", head_dim)) != head_dim:
            raise ModelError(f"{self.path}: keys and values of different head sizes are not supported")
        if "token_embd.weight" not in self._tensors:
            raise ModelError(f"{self.path} has no tensor 'token_embd.weight'; is it a vocabulary-only file?")
        return LlamaConfig(
            vocab_size=int(self._tensors["token_embd.weight"].shape[1]),
            hidden_size=hidden,
            intermediate_size=int(self._hyper("feed_forward_length")),
            num_hidden_layers=int(self._hyper("block_count")),
            num_attention_heads=heads,
            num_key_value_heads=int(self._hyper("attention.head_count_kv", heads)),
            head_dim=head_dim,
            # Stored as float32: the shortest decimal of that float is the number the model was trained with.
            rms_norm_eps=float(str(np.float32(self._hyper("attention.layer_norm_rms_epsilon")))),
            rope_theta=float(str(np.float32(self._hyper("rope.freq_base", 1e4)))),
            rope_factors=self._rope_factors(head_dim),
            max_position_embeddings=int(self._hyper("context_length")),
            tie_word_embeddings="output.weight" not in self._tensors,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            o_bias="blk.0.attn_output.bias" in self._tensors,
            mlp_bias="blk.0.ffn_down.bias" in self._tensors,
        )

    def _hyper(self, key: str, default: Any = None) -> Any:
        value = self.metadata(f"{self._architecture}.{key}", default)
        if value is None:
            raise ModelError(
                f"{self.path}: metadata key '{self._architecture}.{key}' is missing; convert the model again"
            )
        if isinstance(value, list):
            raise ModelError(
                f"{self.path}: '{self._architecture}.{key}' differs between layers, which is not supported"
            )
        return value

    def _rope_factors(self, head_dim: int) -> tuple[float, ...]:
        kind = self.metadata(f"{self._architecture}.rope.scaling.type", "none")
        if "rope_freqs.weight" in self._tensors:
            return tuple(float(f) for f in self._tensors["rope_freqs.weight"].data)
        if kind == "linear":
            return (float(self._hyper("rope.scaling.factor")),) * (head_dim // 2)
        if kind != "none":
            raise ModelError(
                f"{self.path}: rotary scaling '{kind}' is not supported; supported are none, linear and rope_freqs"
            )
        return ()


def _open(path: Path) -> Any:
    """Return a gguf.GGUFReader on ``path``: a memory map with its metadata parsed."""
    try:
        import gguf
    except ImportError as e:
        raise ModelError("reading GGUF files needs the package gguf: pip install 'graphopt[llm]'") from e
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file; give the path of a .gguf file")
    try:
        return gguf.GGUFReader(path)
    except OSError as e:
        raise ModelError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, IndexError, KeyError, OverflowError) as e:
        raise ModelError(
            f"{path} is not a GGUF file, or it is truncated or damaged ({path.stat().st_size} bytes): {e}"
        ) from e


def _gguf_name(name: str) -> str:
    """Translate a Hugging Face tensor name to llama.cpp's; unknown names are returned as they are."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    _, _, rest = name.partition("model.layers.")
    layer, _, tail = rest.partition(".")
    part, _, kind = tail.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}" if part in _LAYER_NAMES else name


def _unpermute(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo the row order of llama.cpp's converter: [heads, head_dim / 2, 2, ...] -> [heads, 2, head_dim / 2, ...]."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
