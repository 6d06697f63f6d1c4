"""Writers of the small files that the readers are tested with."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from graphopt.models.llama_config import LlamaConfig

SAFETENSORS_DTYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int8): "I8",
    np.dtype(np.int16): "I16",
}
_GGUF_PARTS = {
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


@pytest.fixture
def tiny() -> LlamaConfig:
    """Two layers, grouped heads, head_dim x heads unlike hidden_size, widths that K quants accept."""
    return LlamaConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )


@pytest.fixture
def write_safetensors() -> Callable[[Path, dict[str, np.ndarray]], None]:
    """Write arrays as one .safetensors file."""

    def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
        header, blobs, at = {}, [], 0
        for name, array in arrays.items():
            blob = np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()
            dtype = SAFETENSORS_DTYPES[array.dtype]
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
            blobs.append(blob)
            at += len(blob)
        raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(blobs))

    return write


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Write a Llama-family GGUF file as llama.cpp's converter does, q and k rows permuted."""

    def write(
        config: LlamaConfig,
        tensor: Callable[[str], np.ndarray],
        quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        *,
        architecture: str = "llama",
        edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
        omit: frozenset[str] = frozenset(),
    ) -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        if "rms" not in omit:
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        edit(writer)
        for name in config.weight_shapes():
            if name not in omit:
                values = tensor(name)
                if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
                    values = _llama_cpp_permute(values, values.shape[0] // config.head_dim)
                if values.ndim == 2:
                    packed = gguf.quantize(values, quantization)
                    writer.add_tensor(_gguf_name(name), packed, raw_dtype=quantization)
                else:
                    writer.add_tensor(_gguf_name(name), values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _gguf_name(name: str) -> str:
    if "layers" not in name:
        return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
            name.removesuffix(".weight")
        ] + ".weight"
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    part, _, kind = part.rpartition(".")
    return f"blk.{layer}.{_GGUF_PARTS[part]}.{kind}"


def _llama_cpp_permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )
