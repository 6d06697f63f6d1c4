"""The weight layers of a model in whatever form it is: what they produce, and how many bits their weights take."""

__all__ = ["WeightLayer", "bits_per_weight", "weight_layers"]

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.op import DOMAIN
from graphopt.errors import InternalError
from graphopt.ir import Model, query, weights
from graphopt.passes import OPS

#: Lowered linears: the input that holds the codes, and how many weights are in one of its elements.
_CODES = {"MixQLinear": ("wq", 1)}
#: What may stand between a stored weight and the product that uses it.
_VIEWS = ("Transpose", "Cast", "Identity", "DequantizeLinear")


@dataclass(frozen=True)
class WeightLayer:
    """One product with a constant weight.

    Attributes:
        name: of the node.
        output: name of the value it produces, (..., N).
        outputs: N.
        elements: number of weights, N·K.
        bits: bits that everything stored for them takes: codes, scales, zero points, outlier columns; not the bias.
        embedding: whether the weight is also the token table of a Gather (a tied head).
    """

    name: str
    output: str
    outputs: int
    elements: int
    bits: int
    embedding: bool


def weight_layers(model: Model) -> list[WeightLayer]:
    """Return the weight layers of the main graph, in graph order."""
    return [layer for node in model.graph.nodes if (layer := _layer(node)) is not None]


def bits_per_weight(layers: Iterable[WeightLayer]) -> float | None:
    """Return stored bits over number of weights of all layers, quantized or not; None without any.

    A tied head is left out: its weight is the embedding table.
    """
    counted = [layer for layer in layers if not layer.embedding]
    elements = sum(layer.elements for layer in counted)
    return sum(layer.bits for layer in counted) / elements if elements else None


def _layer(node: gs.Node) -> WeightLayer | None:
    if query.is_op(node, *LINEAR_OPS, domain=DOMAIN):
        found = _stored(node.inputs[1])
        columns = 0 if node.attrs.get("trans_w", 0) else 1
    elif query.is_op(node, "MatMul", "Gemm"):
        found = [] if _stored(node.inputs[0]) else _stored(node.inputs[1])
        columns = 0 if node.attrs.get("transB", 0) else 1
    elif query.is_op(node, "MatMulNBits", domain="com.microsoft"):
        stored = [t for t in node.inputs[1:4] if isinstance(t, gs.Constant)]
        n, k = int(node.attrs["N"]), int(node.attrs["K"])
        return WeightLayer(node.name, node.outputs[0].name, n, n * k, _bits(stored), False)
    elif node.domain == DOMAIN and node.op.endswith("Linear"):
        return _lowered(node)
    else:
        return None
    if not found or len(node.inputs[1].shape or found[0].shape) != 2:
        return None
    shape = node.inputs[1].shape or found[0].shape
    elements = int(np.prod(found[0].shape, dtype=np.int64))
    embedding = any(query.is_op(n, "Gather") and n.inputs[0] is found[0] for n in query.consumers(found[0]))
    return WeightLayer(node.name, node.outputs[0].name, int(shape[columns]), elements, _bits(found), embedding)


def _lowered(node: gs.Node) -> WeightLayer:
    spec = next((s for s in OPS if s.is_node(node)), None)
    if spec is None or node.op not in _CODES:
        raise InternalError(f"no entry for the linear op '{node.op}' of node '{node.name}'")
    given = {p.name: t for p, t in zip(spec.inputs, node.inputs, strict=True)}
    codes_name, packed = _CODES[node.op]
    codes = given[codes_name]
    elements = int(np.prod(codes.shape, dtype=np.int64)) * packed
    stored = [t for name, t in given.items() if isinstance(t, gs.Constant) and name != "bias"]
    return WeightLayer(node.name, node.outputs[0].name, int(codes.shape[0]), elements, _bits(stored), False)


def _stored(tensor: gs.Tensor) -> list[gs.Constant]:
    """The constants behind ``tensor``, the weight first; empty if it is computed from inputs."""
    if isinstance(tensor, gs.Constant):
        return [tensor]
    node = query.producer(tensor)
    if not query.is_op(node, *_VIEWS):
        return []
    assert node is not None
    sides = [t for t in node.inputs[1:] if isinstance(t, gs.Constant)]
    return [*first, *sides] if (first := _stored(node.inputs[0])) else []


def _bits(constants: Iterable[gs.Constant]) -> int:
    return 8 * sum(weights.nbytes(c) for c in constants)
