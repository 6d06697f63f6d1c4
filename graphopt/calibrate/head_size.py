"""The head size of a cache that declares a symbol for it, as the builder of onnxruntime-genai writes
``past_key_values.0.key (batch_size, 2, past_sequence_length, kv_cache_dim)``: the operator that reads it fixes it."""

__all__ = ["head_size"]

import onnx_graphsurgeon as gs

from graphopt.ir import query

_FUSED = ("GroupQueryAttention", "MultiHeadAttention")
#: What keeps the width of its first input.
_SAME_WIDTH = ("Add", "Cast", "Identity", "RotaryEmbedding", "SimplifiedLayerNormalization", "LayerNormalization")


def head_size(past: gs.Tensor) -> int | None:
    """Return the channels of a head in the cache ``past``; None if no fused attention reads it, or none that says."""
    node = next((n for n in query.consumers(past) if query.is_op(n, *_FUSED, domain="com.microsoft")), None)
    if node is None:
        return None
    heads = int(node.attrs["num_heads"])
    if not node.inputs[1].name:  # query, key and value are one tensor, one after the other
        heads += 2 * int(node.attrs.get("kv_num_heads", heads))
    width = _width(node.inputs[0])
    return width // heads if width else None


def _width(tensor: gs.Tensor) -> int | None:
    """The last dimension of ``tensor``: declared, or that of the weight that it is a product with."""
    if tensor.shape and isinstance(tensor.shape[-1], int):
        return tensor.shape[-1]
    node = query.producer(tensor)
    if query.is_op(node, "MatMul"):
        return _width(node.inputs[1])
    if query.is_op(node, "MatMulNBits", domain="com.microsoft"):
        return int(node.attrs["N"])
    if query.is_op(node, "Reshape"):
        target = query.constant_array(node.inputs[1])
        return int(target[-1]) if target is not None and target[-1] > 0 else None
    if query.is_op(node, *_SAME_WIDTH) or query.is_op(node, *_SAME_WIDTH, domain="com.microsoft"):
        return _width(node.inputs[0])
    return None
