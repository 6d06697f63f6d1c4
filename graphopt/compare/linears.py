"""The weight layers of a model in whatever form it is: what they produce, and how many bits their weights take."""

__all__ = ["WeightLayer", "bits_per_weight", "weight_layers"]

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.op import DOMAIN
from graphopt.errors import InternalError
from graphopt.ir import Model, query, weights
from graphopt.passes import OPS

#: Lowered linears: the input that holds the codes, and how many weights are in one of its elements (padding included).
_CODES = {
    "MixQLinear": ("wq", 1),
    "MixQLinearW4A8": ("wq4", 2),
    "MixQLinearW4A4": ("wq4", 2),
    "MANTLinear": ("codes", 2),
    "MANTLinearW4A8": ("codes", 2),
    "MANTLinearInt8": ("codes", 2),
    "VQLinear": ("codes", 1),
    "VQLinearE8": ("codes", 4),
}
#: Operands of lowered linears that are not the weight: the bias, and what several of them share.
_BESIDES = ("bias", "table", "idx")
#: End the names of forms of MixQ ops, which store what the plain ones store: with online prediction, with a residual.
_FORMS = ("Online", "Add")
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
        transposed = bool(node.attrs.get("trans_w", 0))
    elif query.is_op(node, "MatMul", "Gemm") and _behind(node.inputs[0]) is None:
        transposed = bool(node.attrs.get("transB", 0))
    elif query.is_op(node, "MatMulNBits", domain="com.microsoft"):
        stored = [t for t in node.inputs[1:4] if isinstance(t, gs.Constant)]
        n, k = int(node.attrs["N"]), int(node.attrs["K"])
        return WeightLayer(node.name, node.outputs[0].name, n, n * k, _bits(stored), False)
    elif node.domain == DOMAIN and "Linear" in node.op:
        return _lowered(node)
    else:
        return None
    weight = _behind(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        return None
    rows, columns = weight.shape
    root = weight.constants[0]
    embedding = any(query.is_op(n, "Gather") and n.inputs[0] is root for n in query.consumers(root))
    return WeightLayer(
        node.name,
        node.outputs[0].name,
        outputs=rows if transposed else columns,
        elements=rows * columns,
        bits=_bits(weight.constants),
        embedding=embedding,
    )


def _lowered(node: gs.Node) -> WeightLayer:
    spec = next((s for s in OPS if s.is_node(node)), None)
    entry = _CODES.get(functools.reduce(str.removesuffix, _FORMS, node.op))
    if spec is None or entry is None:
        raise InternalError(f"no entry for the linear op '{node.op}' of node '{node.name}'")
    given = {p.name: t for p, t in zip(spec.inputs, node.inputs, strict=True)}
    codes_name, count = entry
    codes, packed = given[codes_name], Fraction(count)
    if "codebooks" in given:
        _, _, residuals, _, vector = given["codebooks"].shape
        packed = Fraction(8 * vector, residuals * int(node.attrs["bits"]))
    elif "ratios" in given:
        packed /= int(np.prod(given["ratios"].shape))
    elements = int(int(np.prod(codes.shape, dtype=np.int64)) * packed)
    stored = [t for name, t in given.items() if isinstance(t, gs.Constant) and name not in _BESIDES]
    return WeightLayer(node.name, node.outputs[0].name, int(codes.shape[0]), elements, _bits(stored), False)


@dataclass(frozen=True)
class _Stored:
    """A weight as its product sees it: the constants it is made of, the codes first, and its shape."""

    constants: tuple[gs.Constant, ...]
    shape: tuple[int, ...]


def _behind(tensor: gs.Tensor) -> _Stored | None:
    """The constants behind ``tensor``; None if it is computed from inputs."""
    if isinstance(tensor, gs.Constant):
        return _Stored((tensor,), tuple(int(d) for d in tensor.shape))
    node = query.producer(tensor)
    if node is None or not query.is_op(node, *_VIEWS) or (source := _behind(node.inputs[0])) is None:
        return None
    if node.op == "Transpose":
        order = node.attrs.get("perm") or range(len(source.shape))[::-1]
        return _Stored(source.constants, tuple(source.shape[axis] for axis in order))
    sides = tuple(t for t in node.inputs[1:] if isinstance(t, gs.Constant))
    return _Stored((*source.constants, *sides), source.shape)


def _bits(constants: Iterable[gs.Constant]) -> int:
    return 8 * sum(weights.nbytes(c) for c in constants)
