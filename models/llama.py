"""Llama-family decoder with a key-value cache, in plain standard ONNX operators.

    inputs   input_ids [batch, seq], attention_mask [batch, past + seq], position_ids [batch, seq]      int64
             past_key_values.{i}.key, past_key_values.{i}.value [batch, kv_heads, past, head_dim]       T
    outputs  logits [batch, seq, vocab], present.{i}.key, present.{i}.value [batch, kv_heads, past + seq, head_dim]   T

Any batch >= 1, seq >= 1 and past >= 0. Causality goes by cache slot: the queries are the last ``seq`` of the
``past + seq`` slots. ``position_ids`` only rotate, so left padding needs attention_mask 0 at the padding and positions
that start after it.
"""

__all__ = ["build_llama", "llama_model"]

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import ir
from graphopt.models.graph_builder import GraphBuilder, Progress, save_built
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import WeightSource


def build_llama(
    config: LlamaConfig,
    source: WeightSource[LlamaConfig],
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    opset: int = 18,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the decoder to ``path`` with its weights in ``<path>.data``, never holding more than a weight or two.

    Args:
        config: sizes; usually ``source.config``, or that with fewer layers.
        source: where the weights come from.
        path: the .onnx file; it and its data file are replaced atomically.
        dtype: "float32", "float16" or "bfloat16": weights, activations, cache and logits. Norms, rotary angles and
            softmax are computed in float32 in any case.
        opset: standard ONNX opset, 17 to 23.
        progress: called after each weight with (weights written, weights in all, name).

    Returns:
        The files written, the model first.

    Raises:
        ModelError: dtype or opset is unknown, or a weight is missing, has another shape or does not fit the dtype.
        OutputError: the files cannot be written; nothing was left behind.
    """
    return save_built(
        lambda spool: llama_model(config, source, dtype=dtype, opset=opset, spool=spool, progress=progress), path
    )


def llama_model(
    config: LlamaConfig,
    source: WeightSource[LlamaConfig],
    *,
    dtype: str = "float32",
    opset: int = 18,
    spool: Path | None = None,
    progress: Progress | None = None,
) -> ir.Model:
    """Return the decoder as a `Model` whose weights lie in a temporary file below ``spool``.

    The other arguments and the errors are those of `build_llama`.
    """
    builder = GraphBuilder(
        "llama", config.weight_shapes(), source, dtype=dtype, opset=opset, spool=spool, progress=progress
    )
    return _Decoder(builder, config).write()


@dataclass(frozen=True)
class _Step:
    """What every layer reads, computed once per call of the model."""

    cos: Any  # [batch, 1, seq, head_dim] T
    sin: Any  # [batch, 1, seq, head_dim] T
    mask: Any  # [batch, 1, seq, past + seq] T, additive


class _Decoder:
    """Writes the decoder of one configuration; methods are in the order of the data flow."""

    def __init__(self, builder: GraphBuilder, config: LlamaConfig) -> None:
        self.b = builder
        self.c = config

    def write(self) -> ir.Model:
        b, c = self.b, self.c
        input_ids = b.input("input_ids", np.int64, ["batch_size", "sequence_length"])
        attention_mask = b.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
        position_ids = b.input("position_ids", np.int64, ["batch_size", "sequence_length"])
        cache: list[int | str] = ["batch_size", c.num_key_value_heads, "past_sequence_length", c.head_dim]
        past = [
            (b.input(f"past_key_values.{i}.key", b.dtype, cache), b.input(f"past_key_values.{i}.value", b.dtype, cache))
            for i in range(c.num_hidden_layers)
        ]
        embedding = b.weight("model.embed_tokens.weight")
        x = b.op("Gather", [embedding, input_ids], "/model/embed_tokens/Gather", axis=0)
        cos, sin = self._rotary_table(position_ids)
        step = _Step(cos, sin, self._mask(input_ids, attention_mask))

        grown: list[int | str] = ["batch_size", c.num_key_value_heads, "total_sequence_length", c.head_dim]
        present = []
        for i, (past_key, past_value) in enumerate(past):
            x, key, value = self._layer(i, x, past_key, past_value, step)
            present += [(f"present.{i}.key", key), (f"present.{i}.value", value)]
        x = self._rms_norm(x, "model.norm", "/model/norm")
        logits = self._head(x, embedding)
        b.output(logits, "logits", b.dtype, ["batch_size", "sequence_length", c.vocab_size])
        for name, value in present:
            b.output(value, name, b.dtype, grown)
        return b.model

    def _rotary_table(self, position_ids: Any) -> tuple[Any, Any]:
        """cos and sin of position x frequency, [batch, 1, seq, head_dim], each frequency twice (rotate-half layout)."""
        b, scope = self.b, "/model/rotary_emb"
        frequencies = np.array(self.c.inverse_frequencies(), np.float32).reshape(1, 1, -1)
        positions = b.op("Cast", [position_ids], f"{scope}/Cast", to=onnx.TensorProto.FLOAT)
        positions = b.op("Unsqueeze", [positions, b.ints(2)], f"{scope}/Unsqueeze")
        angles = b.op("Mul", [positions, b.constant("model.rotary_emb.inv_freq", frequencies)], f"{scope}/Mul")
        angles = b.op("Concat", [angles, angles], f"{scope}/Concat", axis=-1)
        angles = b.op("Unsqueeze", [angles, b.ints(1)], f"{scope}/Unsqueeze_1")
        cos = b.cast(b.op("Cos", [angles], f"{scope}/Cos"), b.dtype, f"{scope}/Cast_1")
        sin = b.cast(b.op("Sin", [angles], f"{scope}/Sin"), b.dtype, f"{scope}/Cast_2")
        return cos, sin

    def _mask(self, input_ids: Any, attention_mask: Any) -> Any:
        """0 where a query may look at a slot (not padding, not after itself), a very negative number elsewhere."""
        b, scope = self.b, "/model/mask"
        total = self._columns(attention_mask, f"{scope}/total")
        past = b.op("Sub", [total, self._columns(input_ids, f"{scope}/seq")], f"{scope}/Sub")
        start, step = b.scalar(0, np.int64), b.scalar(1, np.int64)
        slots = b.op("Range", [start, total, step], f"{scope}/Range")
        queries = b.op("Range", [past, total, step], f"{scope}/Range_1")
        queries = b.op("Unsqueeze", [queries, b.ints(1)], f"{scope}/Unsqueeze")
        causal = b.op("LessOrEqual", [slots, queries], f"{scope}/LessOrEqual")
        real = b.op("Cast", [attention_mask], f"{scope}/Cast", to=onnx.TensorProto.BOOL)
        real = b.op("Unsqueeze", [real, b.ints(1, 2)], f"{scope}/Unsqueeze_1")
        visible = b.op("And", [causal, real], f"{scope}/And")
        hidden = b.scalar(b.masked_score, b.dtype)
        return b.op("Where", [visible, b.scalar(0.0, b.dtype), hidden], f"{scope}/Where")

    def _columns(self, matrix: Any, scope: str) -> Any:
        """The second dimension of ``matrix`` as an int64 scalar."""
        size = self.b.op("Shape", [matrix], f"{scope}/Shape", start=1)
        return self.b.op("Squeeze", [size, self.b.ints(0)], f"{scope}/Squeeze")

    def _layer(self, i: int, x: Any, past_key: Any, past_value: Any, step: _Step) -> tuple[Any, Any, Any]:
        """One decoder layer; returns the residual stream and the grown cache."""
        b, module, scope = self.b, f"model.layers.{i}", f"/model/layers.{i}"
        h = self._rms_norm(x, f"{module}.input_layernorm", f"{scope}/input_layernorm")
        h, key, value = self._attention(f"{module}.self_attn", f"{scope}/self_attn", h, past_key, past_value, step)
        x = b.op("Add", [x, h], f"{scope}/Add")
        h = self._rms_norm(x, f"{module}.post_attention_layernorm", f"{scope}/post_attention_layernorm")
        h = self._mlp(f"{module}.mlp", f"{scope}/mlp", h)
        return b.op("Add", [x, h], f"{scope}/Add_1"), key, value

    def _rms_norm(self, x: Any, module: str, scope: str) -> Any:
        """``T(x32 / sqrt(mean(x32^2) + eps)) * gamma``, the spelling of Hugging Face's LlamaRMSNorm."""
        b = self.b
        x32 = b.cast(x, np.float32, f"{scope}/Cast")
        square = b.op("Pow", [x32, b.scalar(2.0, np.float32)], f"{scope}/Pow")
        mean = b.mean(square, f"{scope}/ReduceMean")
        shifted = b.op("Add", [mean, b.scalar(self.c.rms_norm_eps, np.float32)], f"{scope}/Add")
        inverse = b.op("Reciprocal", [b.op("Sqrt", [shifted], f"{scope}/Sqrt")], f"{scope}/Reciprocal")
        normalized = b.cast(b.op("Mul", [x32, inverse], f"{scope}/Mul"), b.dtype, f"{scope}/Cast_1")
        return b.op("Mul", [normalized, b.weight(f"{module}.weight")], f"{scope}/Mul_1")

    def _attention(
        self, module: str, scope: str, x: Any, past_key: Any, past_value: Any, step: _Step
    ) -> tuple[Any, Any, Any]:
        b, c = self.b, self.c
        query = self._heads(b.linear(x, f"{module}.q_proj", f"{scope}/q_proj"), c.num_attention_heads, f"{scope}/q")
        key = self._heads(b.linear(x, f"{module}.k_proj", f"{scope}/k_proj"), c.num_key_value_heads, f"{scope}/k")
        value = self._heads(b.linear(x, f"{module}.v_proj", f"{scope}/v_proj"), c.num_key_value_heads, f"{scope}/v")
        query, key = self._rotate(query, step, f"{scope}/q_rotary"), self._rotate(key, step, f"{scope}/k_rotary")
        key = b.op("Concat", [past_key, key], f"{scope}/k_cache/Concat", axis=2)
        value = b.op("Concat", [past_value, value], f"{scope}/v_cache/Concat", axis=2)

        transposed = b.op(
            "Transpose", [self._repeat(key, f"{scope}/k_repeat")], f"{scope}/Transpose", perm=[0, 1, 3, 2]
        )
        scaled = b.op("Mul", [query, b.scalar(1 / math.sqrt(c.head_dim), b.dtype)], f"{scope}/Mul")
        scores = b.op("MatMul", [scaled, transposed], f"{scope}/MatMul")
        scores = b.op("Add", [scores, step.mask], f"{scope}/Add")
        weights = b.op("Softmax", [b.cast(scores, np.float32, f"{scope}/Cast")], f"{scope}/Softmax", axis=-1)
        weights = b.cast(weights, b.dtype, f"{scope}/Cast_1")
        mixed = b.op("MatMul", [weights, self._repeat(value, f"{scope}/v_repeat")], f"{scope}/MatMul_1")
        mixed = b.op("Transpose", [mixed], f"{scope}/Transpose_1", perm=[0, 2, 1, 3])
        mixed = b.op("Reshape", [mixed, b.ints(0, 0, c.num_attention_heads * c.head_dim)], f"{scope}/Reshape")
        return b.linear(mixed, f"{module}.o_proj", f"{scope}/o_proj"), key, value

    def _heads(self, x: Any, heads: int, scope: str) -> Any:
        """[batch, seq, heads * head_dim] -> [batch, heads, seq, head_dim]."""
        x = self.b.op("Reshape", [x, self.b.ints(0, 0, heads, self.c.head_dim)], f"{scope}/Reshape")
        return self.b.op("Transpose", [x], f"{scope}/Transpose", perm=[0, 2, 1, 3])

    def _rotate(self, x: Any, step: _Step, scope: str) -> Any:
        """``x * cos + concat(-x[half:], x[:half]) * sin`` along the head dimension."""
        b, half, last = self.b, self.c.head_dim // 2, self.b.ints(-1)
        first = b.op("Slice", [x, b.ints(0), b.ints(half), last], f"{scope}/Slice")
        second = b.op("Slice", [x, b.ints(half), b.ints(self.c.head_dim), last], f"{scope}/Slice_1")
        half_turned = b.op("Concat", [b.op("Neg", [second], f"{scope}/Neg"), first], f"{scope}/Concat", axis=-1)
        straight = b.op("Mul", [x, step.cos], f"{scope}/Mul")
        turned = b.op("Mul", [half_turned, step.sin], f"{scope}/Mul_1")
        return b.op("Add", [straight, turned], f"{scope}/Add")

    def _repeat(self, x: Any, scope: str) -> Any:
        """[batch, kv_heads, slots, head_dim] -> [batch, heads, slots, head_dim]: each head serves a group."""
        b, c = self.b, self.c
        group = c.num_attention_heads // c.num_key_value_heads
        if group == 1:
            return x
        x = b.op("Unsqueeze", [x, b.ints(2)], f"{scope}/Unsqueeze")
        x = b.op("Expand", [x, b.ints(1, 1, group, 1, 1)], f"{scope}/Expand")
        return b.op("Reshape", [x, b.ints(0, c.num_attention_heads, -1, c.head_dim)], f"{scope}/Reshape")

    def _mlp(self, module: str, scope: str, x: Any) -> Any:
        """``down(silu(gate(x)) * up(x))``."""
        b = self.b
        gate = b.linear(x, f"{module}.gate_proj", f"{scope}/gate_proj")
        silu = b.op("Mul", [gate, b.op("Sigmoid", [gate], f"{scope}/act_fn/Sigmoid")], f"{scope}/act_fn/Mul")
        product = b.op("Mul", [silu, b.linear(x, f"{module}.up_proj", f"{scope}/up_proj")], f"{scope}/Mul")
        return b.linear(product, f"{module}.down_proj", f"{scope}/down_proj")

    def _head(self, x: Any, embedding: Any) -> Any:
        if not self.c.tie_word_embeddings:
            return self.b.linear(x, "lm_head", "/lm_head")
        tied = self.b.op("Transpose", [embedding], "/lm_head/Transpose", perm=[1, 0])
        return self.b.op("MatMul", [x, tied], "/lm_head/MatMul")
