"""Weights quantized in blocks along K (com.microsoft) -> plain weights in the activation type.

    MatMulNBits(x, B, scales, zeros?)              -> Linear(x, W; trans_w) or LinearBias
    GatherBlockQuantized(B, indices, scales, zeros?) -> Gather(W, indices)

    W[n, k] = scale[n, b] · (q[n, k] - zero[n, b]),   b = k // block_size

so that schemes start from one representation, and an embedding that shares B with the head shares W with it, too.
Codes of less than 8 bits are packed into bytes, low bits first; the last block of MatMulNBits is padded to
``block_size``. One weight at a time is in memory. Visits the main graph and its subgraphs.
"""

__all__ = ["RULES", "dequantize"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, place, take_outputs
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.fused_node import Attributes, inputs_of, unknown
from graphopt.passes.canonicalize.naming import canonical_name

_MICROSOFT = "com.microsoft"
_BITS = (2, 4, 8)
#: Defaults of ONNX Runtime's schemas, by attribute; MatMulNBits has to say its block size.
_DEFAULTS = {"bits": 4, "block_size": 128}


@dataclass(frozen=True)
class _Quantized:
    """A match: the node, its given inputs by name (constants where they are weights), and the sizes of W."""

    node: gs.Node
    given: dict[str, gs.Tensor]
    n: int
    k: int


def dequantize(
    packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, *, n: int, k: int, bits: int, block: int
) -> np.ndarray:
    """Return W (n, k) in the dtype of ``scales``.

    Args:
        packed: n rows of blocks * block * bits / 8 bytes, or of k * bits / 8 bytes, uint8, low bits first.
        scales: n * blocks values.
        zeros: n * blocks values of the scales' dtype, or n * ceil(blocks * bits / 8) bytes packed like the codes; None
            means 2^(bits - 1).
        n: rows, output channels.
        k: columns, input channels.
        bits: 2, 4 or 8.
        block: values of k that share a scale.
    """
    blocks = -(-k // block)
    rows = packed.reshape(n, -1)
    rows = np.pad(rows, ((0, 0), (0, blocks * block * bits // 8 - rows.shape[1])))
    codes = _unpack(rows, bits).reshape(n, blocks, block).astype(np.float32)
    if zeros is None:
        offset = np.full((1, 1, 1), 1 << (bits - 1), np.float32)
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


def _constant(tensor: gs.Tensor) -> gs.Tensor:
    """Return the constant behind a Reshape, whose bytes are the same."""
    node = query.producer(tensor)
    return node.inputs[0] if node is not None and query.is_op(node, "Reshape") else tensor


def _setting(node: gs.Node, name: str) -> int:
    return int(node.attrs.get(name, _DEFAULTS[name]))


def _refusal(given: Mapping[str, gs.Tensor], bits: int) -> str | None:
    if bits not in _BITS:
        return f"bits is {bits}, known are 2, 4 and 8"
    for name in ("packed", "scales", "zeros", "bias"):
        if name in given and not isinstance(given[name], gs.Constant):
            return f"{name} '{given[name].name}' is not a constant"
    if given["packed"].dtype != np.uint8:
        return f"codes '{given['packed'].name}' are not packed into uint8"
    return None


def _weight(model: Model, graph: gs.Graph, match: _Quantized) -> gs.Constant:
    """Return W (n, k), made once for all nodes that read the same codes."""
    parts = [match.given[name] for name in ("packed", "scales", "zeros") if name in match.given]
    name = "_".join([*(t.name for t in parts), str(match.k)])
    known = graph.tensors().get(name) if model.knows(name) else None
    if isinstance(known, gs.Constant):
        return known
    packed, scales, *zeros = (np.asarray(weights.read(t)) for t in parts)
    bits, block = (_setting(match.node, setting) for setting in ("bits", "block_size"))
    sizes = {"n": match.n, "k": match.k, "bits": bits, "block": block}
    return model.store.put(model.unique_name(name), dequantize(packed, scales, zeros[0] if zeros else None, **sizes))


class MatMulNBitsRule(Rule):
    """MatMulNBits -> Linear or LinearBias; trans_w is 1."""

    name = "linear-nbits"
    anchors = ("MatMulNBits",)
    _INPUTS = ("x", "packed", "scales", "zeros", "g_idx", "bias")
    _ATTRIBUTES: ClassVar[Attributes] = {
        **dict.fromkeys(("K", "N", "bits", "block_size", "accuracy_level")),
        "weight_prepacked": (0,),
    }

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "MatMulNBits", domain=_MICROSOFT):
            return None
        if reason := unknown(node, self._INPUTS, self._ATTRIBUTES):
            return Refusal(reason)
        given = inputs_of(node, self._INPUTS)
        given |= {"packed": _constant(given["packed"])}
        if "g_idx" in given:
            return Refusal(f"input channels are reordered (g_idx '{given['g_idx'].name}')")
        if reason := _refusal(given, _setting(node, "bits")):
            return Refusal(reason)
        return _Quantized(node, given, int(node.attrs["N"]), int(node.attrs["K"]))

    def rewrite(self, model: Model, graph: gs.Graph, match: _Quantized) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node)
        stored = _weight(model, graph, match)
        inputs, spec = [match.given["x"], stored], ops.LINEAR
        if "bias" in match.given:
            inputs, spec = [*inputs, match.given["bias"]], ops.LINEAR_BIAS
        place(graph, spec, name, inputs, match.node, trans_w=1)
        return f"{spec.name} '{name}', {_setting(match.node, 'bits')}-bit weight written out"


class GatherRule(Rule):
    """GatherBlockQuantized of a table (rows, K) -> Gather."""

    name = "gather-nbits"
    anchors = ("GatherBlockQuantized",)
    _INPUTS = ("packed", "indices", "scales", "zeros")
    _ATTRIBUTES: ClassVar[Attributes] = dict.fromkeys(("bits", "block_size", "gather_axis", "quantize_axis"))

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "GatherBlockQuantized", domain=_MICROSOFT):
            return None
        if reason := unknown(node, self._INPUTS, self._ATTRIBUTES):
            return Refusal(reason)
        given = inputs_of(node, self._INPUTS)
        given |= {"packed": _constant(given["packed"])}
        if node.attrs.get("gather_axis", 0) != 0 or node.attrs.get("quantize_axis", 1) not in (1, -1):
            return Refusal("rows are not gathered from axis 0 of blocks along axis 1")
        if reason := _refusal(given, _setting(node, "bits")):
            return Refusal(reason)
        scales = given["scales"].shape
        if len(scales) != 2:
            return Refusal(f"the table has rank {len(scales)}, not 2")
        bits = 8 * int(np.prod(given["packed"].shape, dtype=np.int64))
        return _Quantized(node, given, int(scales[0]), bits // int(scales[0]) // _setting(node, "bits"))

    def rewrite(self, model: Model, graph: gs.Graph, match: _Quantized) -> str:
        """See `Rule.rewrite`."""
        stored = _weight(model, graph, match)
        (output,) = take_outputs(match.node)
        Emitter(model, graph, match.node.name).op("Gather", stored, match.given["indices"], out=output, axis=0)
        return f"Gather of {match.n} rows written out"


RULES = (MatMulNBitsRule(), GatherRule())
