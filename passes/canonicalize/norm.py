"""Norms over the last axis, written out in elementwise operators -> RMSNorm and LayerNorm.

    x / sqrt(mean(x²) + ε) · γ               -> RMSNorm(x, γ; ε)
    d = x - mean(x);  d / sqrt(mean(d²) + ε) · γ + β    -> LayerNorm(x, γ, β; ε)

The square is Pow(d, 2) or Mul(d, d); the quotient is Div(d, s), Mul(d, Reciprocal(s)), Mul(d, Div(1, s)) or
Mul(d, Pow(v, -0.5)). float16 and bfloat16 graphs compute it in float32 between two Casts, which the canonical op does
by itself: the Casts go, and the product with γ is rounded once instead of twice.
Visits the main graph and its subgraphs. Norms that are one node already: norm_ops.py.
"""

__all__ = ["RULES", "vector", "zeros_like"]

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import element_type, place
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name


@dataclass(frozen=True)
class _Norm:
    """A match: ``last`` gives the result, ``anchor`` is the mean of squares."""

    anchor: gs.Node
    x: gs.Tensor
    centered: bool
    epsilon: float
    last: gs.Node
    gamma: gs.Tensor | None = None
    beta: gs.Tensor | None = None


def is_mean_over_last(node: gs.Node | None) -> bool:
    """Whether ``node`` is ReduceMean over the last axis that keeps the dimension."""
    if not query.is_op(node, "ReduceMean"):
        return False
    assert node is not None
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        array = query.constant_array(node.inputs[1])
        axes = None if array is None else array.reshape(-1).tolist()
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
    last = axes is not None and len(axes) == 1 and (axes[0] == -1 or (rank is not None and axes[0] == rank - 1))
    return last and bool(node.attrs.get("keepdims", 1))


def uncast(tensor: gs.Tensor) -> gs.Tensor:
    """Return what ``tensor`` was before a Cast; ``tensor`` itself if it is not one's output."""
    node = query.producer(tensor)
    return node.inputs[0] if node is not None and query.is_op(node, "Cast") else tensor


def _squared(node: gs.Node | None) -> gs.Tensor | None:
    """Return d if ``node`` gives d²."""
    if query.is_op(node, "Pow") and node is not None and query.scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    if query.is_op(node, "Mul") and node is not None and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _centering(tensor: gs.Tensor) -> gs.Tensor | None:
    """Return x if ``tensor`` is x - mean(x)."""
    node = query.producer(tensor)
    if not query.is_op(node, "Sub"):
        return None
    assert node is not None
    x, mean = node.inputs[0], query.producer(node.inputs[1])
    return x if mean is not None and is_mean_over_last(mean) and mean.inputs[0] is x else None


def _other(node: gs.Node, tensor: gs.Tensor) -> gs.Tensor | None:
    """Return the operand of a binary node that is not ``tensor``."""
    if len(node.inputs) != 2 or not any(t is tensor for t in node.inputs):
        return None
    return node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]


def _quotient(graph: gs.Graph, variance: gs.Tensor) -> tuple[gs.Node, gs.Tensor] | None:
    """Return ``(node, d)`` where ``node`` gives d / sqrt(variance)."""
    root = query.sole_consumer(graph, variance)
    if root is None:
        return None
    if query.is_op(root, "Pow") and query.scalar(root.inputs[1]) == -0.5:
        inverse = root.outputs[0]
    elif query.is_op(root, "Sqrt"):
        use = query.sole_consumer(graph, root.outputs[0])
        if use is None:
            return None
        if query.is_op(use, "Div") and use.inputs[1] is root.outputs[0] and query.scalar(use.inputs[0]) is None:
            return use, use.inputs[0]
        unit = query.is_op(use, "Div") and use.inputs[1] is root.outputs[0] and query.scalar(use.inputs[0]) == 1.0
        if not unit and not query.is_op(use, "Reciprocal"):
            return None
        inverse = use.outputs[0]
    else:
        return None
    product = query.sole_consumer(graph, inverse)
    if product is not None and query.is_op(product, "Cast"):
        inverse = product.outputs[0]
        product = query.sole_consumer(graph, inverse)
    if product is None or not query.is_op(product, "Mul"):
        return None
    d = _other(product, inverse)
    return None if d is None else (product, d)


class NormRule(Rule):
    """Elementwise RMS or layer norm -> RMSNorm or LayerNorm."""

    name = "norm"
    anchors = ("ReduceMean",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        square = query.producer(node.inputs[0])
        d = _squared(square)
        if d is None:
            return None
        if not is_mean_over_last(node):
            return Refusal("the mean of squares is not over the last axis alone, or drops it")
        shifted = query.sole_consumer(graph, node.outputs[0])
        if shifted is None or not query.is_op(shifted, "Add"):
            return Refusal("no epsilon is added to the mean of squares")
        epsilon_tensor = _other(shifted, node.outputs[0])
        epsilon = None if epsilon_tensor is None else query.scalar(epsilon_tensor)
        if epsilon is None:
            return Refusal("epsilon is not a constant scalar")
        quotient = _quotient(graph, shifted.outputs[0])
        if quotient is None:
            return Refusal("the mean of squares is not used as d / sqrt(mean + epsilon) alone")
        last, numerator = quotient
        if uncast(numerator) is not uncast(d):
            return Refusal(f"'{d.name}' is squared but '{numerator.name}' is normalized")
        x = _centering(d)
        partial = _Norm(node, d if x is None else x, x is not None, epsilon, last)
        return self._affine(graph, partial)

    def _affine(self, graph: gs.Graph, norm: _Norm) -> _Norm | Refusal:
        """Follow the gain, the shift and the Casts around them."""
        after = query.sole_consumer(graph, norm.last.outputs[0])
        if after is not None and query.is_op(after, "Cast"):
            norm, after = replace(norm, last=after), query.sole_consumer(graph, after.outputs[0])
        gamma = None
        if after is not None and query.is_op(after, "Mul"):
            gamma = _other(after, norm.last.outputs[0])
        if after is None or gamma is None or not query.is_constant(gamma) or _width(gamma) is None:
            return Refusal("no constant gain multiplies the normalized value")
        width = query.static_last_dim(norm.x)
        if width is not None and width != _width(gamma):
            return Refusal(f"gain '{gamma.name}' has {_width(gamma)} values for {width} channels")
        if _may_widen(gamma, norm.x):
            return Refusal(f"gain '{gamma.name}' of shape {list(gamma.shape)} may widen the result")
        norm = replace(norm, last=after, gamma=gamma)
        shift = query.sole_consumer(graph, after.outputs[0])
        if norm.centered and shift is not None and query.is_op(shift, "Add"):
            beta = _other(shift, after.outputs[0])
            fits = beta is not None and query.is_constant(beta) and _width(beta) == _width(gamma)
            if fits and beta is not None and not _may_widen(beta, norm.x):
                norm = replace(norm, last=shift, beta=beta)
        return _typed(graph, norm)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Norm) -> str:
        """See `Rule.rewrite`."""
        assert match.gamma is not None
        kind = element_type(match.last.outputs[0])
        assert kind is not None
        gamma = vector(model, match.gamma, kind)
        inputs, spec = [match.x, gamma], ops.RMS_NORM
        if match.centered:
            beta = match.beta
            shift = zeros_like(model, gamma) if beta is None else vector(model, beta, kind)
            inputs, spec = [*inputs, shift], ops.LAYER_NORM
        name = canonical_name(model, match.last)
        place(graph, spec, name, inputs, match.last, epsilon=match.epsilon)
        return f"{spec.name} '{name}'"


def _width(tensor: gs.Tensor) -> int | None:
    """Length of a constant that is a vector, up to leading dimensions of 1."""
    shape = list(tensor.shape or [])
    return int(shape[-1]) if shape and all(d == 1 for d in shape[:-1]) else None


def _may_widen(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """Whether a vector with leading dimensions of 1 may have a higher rank than ``x``."""
    rank = len(tensor.shape)
    return rank > 1 and (x.shape is None or rank > len(x.shape))


def _typed(graph: gs.Graph, norm: _Norm) -> _Norm | Refusal:
    """Choose the x that is of the result's type T, taking in a final Cast where the constants allow it exactly."""
    result = element_type(norm.last.outputs[0])
    source = uncast(norm.x)
    cast = query.sole_consumer(graph, norm.last.outputs[0])
    if cast is not None and query.is_op(cast, "Cast") and element_type(cast.outputs[0]) == element_type(source):
        narrow = element_type(source)
        if narrow is not None and all(_exact(t, narrow) for t in (norm.gamma, norm.beta) if t is not None):
            return replace(norm, x=source, last=cast)
    for x in (source, norm.x):
        if result is not None and element_type(x) == result:
            return replace(norm, x=x)
    return Refusal(f"the type of input '{norm.x.name}' is not known or is not that of the result")


def _exact(tensor: gs.Tensor, kind: int) -> bool:
    """Whether the values of a constant are representable in element type ``kind``."""
    values = query.constant_array(tensor, limit=None)
    return values is not None and bool(
        np.array_equal(values.astype(weights.numpy_dtype(kind)).astype(values.dtype), values)
    )


def vector(model: Model, tensor: gs.Tensor, kind: int) -> gs.Tensor:
    """Return a constant as a vector of element type ``kind``: itself where it is one."""
    values = query.constant_array(tensor, limit=None)
    assert values is not None
    if isinstance(tensor, gs.Constant) and values.ndim == 1 and element_type(tensor) == kind:
        return tensor
    name = model.unique_name(f"{tensor.name}_vector")
    return model.store.put(name, np.asarray(values).reshape(-1).astype(weights.numpy_dtype(kind)))


def zeros_like(model: Model, tensor: gs.Tensor) -> gs.Constant:
    """Return zeros of the type and length of a constant vector."""
    values = query.constant_array(tensor, limit=None)
    assert values is not None
    return model.store.put(model.unique_name(f"{tensor.name}_zeros"), np.zeros(values.shape, values.dtype))


RULES = (NormRule(),)
