"""BERT-like encoder in standard ONNX operators: post-norm layers, erf GELU, biases everywhere.

    inputs   input_ids, attention_mask, token_type_ids [batch, seq]     int64
    output   last_hidden_state [batch, seq, hidden]                     T

Devlin et al., BERT (2019); weight names are those of Hugging Face's BertModel.
"""

__all__ = ["BertConfig", "bert_model", "build_bert"]

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.models.graph_builder import GraphBuilder, Progress, save_built
from graphopt.models.weights import WeightSource


@dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder; the defaults are BERT-base. Field names are those of Hugging Face's BertConfig.

    Raises:
        ModelError: a size is not positive, or hidden_size is not a multiple of num_attention_heads.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ModelError(f"encoder configuration: {name} is {value}, but must be positive")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"encoder configuration: hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )

    def to_hf(self) -> dict[str, Any]:
        """Return the configuration as the contents of a ``config.json``."""
        return {"model_type": "bert", "hidden_act": "gelu", **asdict(self)}

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names (Hugging Face) and shapes of all weights in the order of use; matrices are [out, in]."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
        for i in range(self.num_hidden_layers):
            for name, shape in (
                ("attention.self.query", (hidden, hidden)),
                ("attention.self.key", (hidden, hidden)),
                ("attention.self.value", (hidden, hidden)),
                ("attention.output.dense", (hidden, hidden)),
                ("attention.output.LayerNorm", (hidden,)),
                ("intermediate.dense", (ffn, hidden)),
                ("output.dense", (hidden, ffn)),
                ("output.LayerNorm", (hidden,)),
            ):
                shapes[f"encoder.layer.{i}.{name}.weight"] = shape
                shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        return shapes


def build_bert(
    config: BertConfig,
    source: WeightSource[BertConfig],
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    opset: int = 18,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the encoder to ``path`` with its weights in ``<path>.data``.

    Arguments, result and errors are those of `graphopt.models.llama.build_llama`.
    """
    return save_built(
        lambda spool: bert_model(config, source, dtype=dtype, opset=opset, spool=spool, progress=progress), path
    )


def bert_model(
    config: BertConfig,
    source: WeightSource[BertConfig],
    *,
    dtype: str = "float32",
    opset: int = 18,
    spool: Path | None = None,
    progress: Progress | None = None,
) -> ir.Model:
    """Return the encoder as a `Model` whose weights lie in a temporary file below ``spool``."""
    builder = GraphBuilder(
        "bert", config.weight_shapes(), source, dtype=dtype, opset=opset, spool=spool, progress=progress
    )
    return _Encoder(builder, config).write()


class _Encoder:
    """Writes the encoder of one configuration; methods are in the order of the data flow."""

    def __init__(self, builder: GraphBuilder, config: BertConfig) -> None:
        self.b = builder
        self.c = config

    def write(self) -> ir.Model:
        b, c = self.b, self.c
        tokens: list[int | str] = ["batch_size", "sequence_length"]
        input_ids, attention_mask, token_type_ids = (
            b.input(name, np.int64, tokens) for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        x = self._embeddings(input_ids, token_type_ids)
        visible = b.op("Cast", [attention_mask], "/mask/Cast", to=onnx.TensorProto.BOOL)
        visible = b.op("Unsqueeze", [visible, b.ints(1, 2)], "/mask/Unsqueeze")
        hidden = b.scalar(b.masked_score, b.dtype)
        mask = b.op("Where", [visible, b.scalar(0.0, b.dtype), hidden], "/mask/Where")
        for i in range(c.num_hidden_layers):
            x = self._layer(f"encoder.layer.{i}", x, mask)
        b.output(x, "last_hidden_state", b.dtype, ["batch_size", "sequence_length", c.hidden_size])
        return b.model

    def _embeddings(self, input_ids: Any, token_type_ids: Any) -> Any:
        b, scope = self.b, "/embeddings"
        words = b.op(
            "Gather",
            [b.weight("embeddings.word_embeddings.weight"), input_ids],
            f"{scope}/word_embeddings/Gather",
            axis=0,
        )
        types = b.op(
            "Gather",
            [b.weight("embeddings.token_type_embeddings.weight"), token_type_ids],
            f"{scope}/token_type_embeddings/Gather",
            axis=0,
        )
        length = b.op("Shape", [input_ids], f"{scope}/Shape", start=1)
        table = b.weight("embeddings.position_embeddings.weight")
        positions = b.op("Slice", [table, b.ints(0), length, b.ints(0)], f"{scope}/position_embeddings/Slice")
        x = b.op("Add", [b.op("Add", [words, types], f"{scope}/Add"), positions], f"{scope}/Add_1")
        return self._layer_norm(x, "embeddings.LayerNorm")

    def _layer(self, module: str, x: Any, mask: Any) -> Any:
        b, scope = self.b, _scope(module)
        h = self._attention(f"{module}.attention.self", x, mask)
        h = b.linear(h, f"{module}.attention.output.dense", f"{scope}/attention/output/dense")
        x = self._layer_norm(
            b.op("Add", [h, x], f"{scope}/attention/output/Add"), f"{module}.attention.output.LayerNorm"
        )
        h = self._gelu(
            b.linear(x, f"{module}.intermediate.dense", f"{scope}/intermediate/dense"), f"{scope}/intermediate/act"
        )
        h = b.linear(h, f"{module}.output.dense", f"{scope}/output/dense")
        return self._layer_norm(b.op("Add", [h, x], f"{scope}/output/Add"), f"{module}.output.LayerNorm")

    def _attention(self, module: str, x: Any, mask: Any) -> Any:
        b, c, scope = self.b, self.c, _scope(module)
        head_dim = c.hidden_size // c.num_attention_heads
        # Keys are transposed for q @ k^T, queries and values put their heads first.
        perms = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        heads = {}
        for name, perm in perms.items():
            y = b.linear(x, f"{module}.{name}", f"{scope}/{name}")
            y = b.op("Reshape", [y, b.ints(0, 0, c.num_attention_heads, head_dim)], f"{scope}/{name}/Reshape")
            heads[name] = b.op("Transpose", [y], f"{scope}/{name}/Transpose", perm=perm)
        scores = b.op("MatMul", [heads["query"], heads["key"]], f"{scope}/MatMul")
        scores = b.op("Div", [scores, b.scalar(math.sqrt(head_dim), b.dtype)], f"{scope}/Div")
        scores = b.op("Add", [scores, mask], f"{scope}/Add")
        weights = b.op("Softmax", [b.cast(scores, np.float32, f"{scope}/Cast")], f"{scope}/Softmax", axis=-1)
        mixed = b.op("MatMul", [b.cast(weights, b.dtype, f"{scope}/Cast_1"), heads["value"]], f"{scope}/MatMul_1")
        mixed = b.op("Transpose", [mixed], f"{scope}/Transpose", perm=[0, 2, 1, 3])
        return b.op("Reshape", [mixed, b.ints(0, 0, c.hidden_size)], f"{scope}/Reshape")

    def _gelu(self, x: Any, scope: str) -> Any:
        """``0.5 x (1 + erf(x / sqrt(2)))``, spelled as exporters do below opset 20."""
        b = self.b
        erf = b.op("Erf", [b.op("Div", [x, b.scalar(math.sqrt(2), b.dtype)], f"{scope}/Div")], f"{scope}/Erf")
        product = b.op("Mul", [x, b.op("Add", [erf, b.scalar(1.0, b.dtype)], f"{scope}/Add")], f"{scope}/Mul")
        return b.op("Mul", [product, b.scalar(0.5, b.dtype)], f"{scope}/Mul_1")

    def _layer_norm(self, x: Any, module: str) -> Any:
        b = self.b
        inputs = [x, b.weight(f"{module}.weight"), b.weight(f"{module}.bias")]
        name = f"{_scope(module)}/LayerNormalization"
        return b.op("LayerNormalization", inputs, name, axis=-1, epsilon=self.c.layer_norm_eps)


def _scope(module: str) -> str:
    """Node scope of a module: dots become slashes, except before a layer's number."""
    return "/" + module.replace(".", "/").replace("/layer/", "/layer.")
