"""com.microsoft MatMulNBits -> Linear, with the weight written out in the activation type.

    W[n, k] = scale[n, b] * (q[n, k] - zero[n, b]),   b = k // block_size

so that schemes start from one representation. Blocks of K are padded to ``block_size``; codes of less than 8 bits are
packed into bytes, low bits first. One weight at a time is in memory. Visits the main graph and its subgraphs.
"""

__all__ = ["RULES", "dequantize"]

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.emit import place
from graphopt.passes.canonicalize.naming import canonical_name

_MICROSOFT = "com.microsoft"
_BITS = (2, 4, 8)
_INPUTS = ("A", "B", "scales", "zero_points", "g_idx", "bias")


def dequantize(
    packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, *, n: int, k: int, bits: int, block: int
) -> np.ndarray:
    """Return W (n, k) in the dtype of ``scales``.

    Args:
        packed: (n, blocks, block * bits / 8) uint8, low bits first.
        scales: n * blocks values.
        zeros: n * blocks values of the scales' dtype, or (n, ceil(blocks * bits / 8)) uint8 packed like the codes;
            None means 2^(bits - 1).
        n: rows, output channels.
        k: columns, input channels.
        bits: 2, 4 or 8.
        block: values of k that share a scale.
    """
    blocks = -(-k // block)
    codes = _unpack(packed.reshape(n, blocks, -1), bits)[..., :block].astype(np.float32)
    if zeros is None:
        offset = np.float32(1 << (bits - 1))
    elif zeros.dtype == np.uint8:
        offset = _unpack(zeros.reshape(n, -1), bits)[:, :blocks, None].astype(np.float32)
    else:
        offset = zeros.reshape(n, blocks, 1).astype(np.float32)
    w = (codes - offset) * scales.reshape(n, blocks, 1).astype(np.float32)
    return np.ascontiguousarray(w.reshape(n, blocks * block)[:, :k].astype(scales.dtype))


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """(..., bytes) -> (..., bytes * 8 / bits)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(values.reshape(*packed.shape[:-1], -1))


class MatMulNBitsRule(Rule):
    """MatMulNBits -> Linear or LinearBias; trans_w is 1."""

    name = "linear-nbits"
    anchors = ("MatMulNBits",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "MatMulNBits", domain=_MICROSOFT):
            return None
        given = {name: t for name, t in zip(_INPUTS, node.inputs, strict=False) if not t.is_empty()}
        if "g_idx" in given:
            return Refusal(f"input channels are reordered (g_idx '{given['g_idx'].name}')")
        if node.attrs.get("bits", 4) not in _BITS:
            return Refusal(f"bits is {node.attrs['bits']}, known are 2, 4 and 8")
        for name in ("B", "scales", "zero_points", "bias"):
            if name in given and not isinstance(given[name], gs.Constant):
                return Refusal(f"{name} '{given[name].name}' is not a constant")
        return node, given

    def rewrite(self, model: Model, graph: gs.Graph, match: tuple[gs.Node, dict[str, gs.Tensor]]) -> str:
        """See `Rule.rewrite`."""
        node, given = match
        name = canonical_name(model, node)
        n, k, bits = (int(node.attrs.get(a, 4)) for a in ("N", "K", "bits"))
        zeros = weights.read(given["zero_points"]) if "zero_points" in given else None
        w = dequantize(
            np.asarray(weights.read(given["B"])),
            np.asarray(weights.read(given["scales"])),
            zeros,
            n=n,
            k=k,
            bits=bits,
            block=int(node.attrs["block_size"]),
        )
        stored = model.store.put(model.unique_name(f"{given['B'].name}_dequantized"), w)
        inputs, spec = [given["A"], stored], ops.LINEAR
        if "bias" in given:
            inputs, spec = [*inputs, given["bias"]], ops.LINEAR_BIAS
        place(graph, spec, name, inputs, node, trans_w=1)
        return f"{spec.name} '{name}', {bits}-bit weight written out as {w.dtype}"


RULES = (MatMulNBitsRule(),)
