"""Small language models that can be worked out by hand, and a tokenizer with one token per byte."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers


def bytes_tokenizer() -> Tokenizer:
    """256 tokens, one per byte of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def write_bigram(path: Path, table: np.ndarray, *, output: str = "logits") -> Path:
    """Write a model whose logits for the next token are the row of ``table`` (V, V) of the last token."""
    dims = ["batch", "sequence"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], [output])],
        "bigram",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, dims)],
        [helper.make_tensor_value_info(output, helper.np_dtype_to_tensor_dtype(table.dtype), [*dims, len(table)])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path
