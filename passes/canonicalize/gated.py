"""Activations and their gates -> Gelu, GeluTanh, GatedSilu, GatedGelu, GatedGeluTanh.

    x · ½ · (1 + erf(x / √2)), factors in any order; Gelu (opset 20)                  -> Gelu(x)
    x · ½ · (1 + tanh(√(2/π) (x + 0.044715 x³))); Gelu with approximate=tanh; FastGelu -> GeluTanh(x)
    Mul(Gelu(g), u)                                                                    -> GatedGelu(g, u)
    Mul(Mul(g, Sigmoid(g)), u)                                                         -> GatedSilu(g, u)

SiLU without a gate stays as it is: no scheme fuses it. Visits the main graph and its subgraphs.
"""

__all__ = ["GATE_RULES", "RULES"]

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, place, take_outputs
from graphopt.core.op import OpSpec
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name

_MICROSOFT = "com.microsoft"
#: Relative distance at which a constant is still the one of the formula: float16 and bfloat16 exports round it.
_CONSTANT_TOLERANCE = 4e-3


@dataclass(frozen=True)
class _Activation:
    node: gs.Node
    x: gs.Tensor
    spec: OpSpec


@dataclass(frozen=True)
class _Gate:
    node: gs.Node
    gate: gs.Tensor
    up: gs.Tensor
    spec: OpSpec


def _is_value(tensor: gs.Tensor, value: float) -> bool:
    found = query.scalar(tensor)
    return found is not None and math.isclose(found, value, rel_tol=_CONSTANT_TOLERANCE)


def _operands(tensor: gs.Tensor, op: str) -> list[tuple[gs.Tensor, gs.Tensor]]:
    """Both orders of the operands of the ``op`` node that gives ``tensor``; empty if there is none."""
    node = query.producer(tensor)
    if node is None or not query.is_op(node, op):
        return []
    a, b = node.inputs
    return [(a, b), (b, a)]


def _erf_argument(tensor: gs.Tensor) -> gs.Tensor | None:
    """Return x if ``tensor`` is x / √2."""
    node = query.producer(tensor)
    if node is not None and query.is_op(node, "Div") and _is_value(node.inputs[1], math.sqrt(2.0)):
        return node.inputs[0]
    return next((x for x, c in _operands(tensor, "Mul") if _is_value(c, math.sqrt(0.5))), None)


def _is_cube(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    node = query.producer(tensor)
    if node is not None and query.is_op(node, "Pow"):
        return node.inputs[0] is x and query.scalar(node.inputs[1]) == 3.0
    return any(a is x and any(p is x and q is x for p, q in _operands(b, "Mul")) for a, b in _operands(tensor, "Mul"))


def _tanh_argument(tensor: gs.Tensor) -> gs.Tensor | None:
    """Return x if ``tensor`` is √(2/π) (x + 0.044715 x³)."""
    for inner, c in _operands(tensor, "Mul"):
        if not _is_value(c, math.sqrt(2.0 / math.pi)):
            continue
        for x, cubic in _operands(inner, "Add"):
            if any(_is_value(k, 0.044715) and _is_cube(cube, x) for cube, k in _operands(cubic, "Mul")):
                return x
    return None


def _products(graph: gs.Graph, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, list[gs.Tensor]]]:
    """Yield each Mul above ``tensor`` with all factors of its product, as long as nobody else reads what is between."""
    factors: list[gs.Tensor] = []
    while True:
        node = query.sole_consumer(graph, tensor)
        if node is None or not query.is_op(node, "Mul") or node.inputs[0] is node.inputs[1]:
            return
        other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
        factors.extend(_flatten(graph, other))
        yield node, factors
        tensor = node.outputs[0]


def _flatten(graph: gs.Graph, tensor: gs.Tensor) -> list[gs.Tensor]:
    """Split ``Mul(x, ½)`` into its factors; anything else is one factor."""
    for x, half in _operands(tensor, "Mul"):
        if _is_value(half, 0.5) and query.sole_consumer(graph, tensor) is not None:
            return [x, half]
    return [tensor]


class ActivationRule(Rule):
    """GELU written out by Erf or Tanh -> Gelu, GeluTanh."""

    name = "gelu"
    anchors = ("Erf", "Tanh")

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, *self.anchors):
            return None
        erf = node.op == "Erf"
        x = (_erf_argument if erf else _tanh_argument)(node.inputs[0])
        if x is None:
            return Refusal("the argument of Erf is not x / sqrt(2)") if erf else None
        shifted = query.sole_consumer(graph, node.outputs[0])
        if shifted is None or not any(_is_value(t, 1.0) for t in shifted.inputs) or not query.is_op(shifted, "Add"):
            return Refusal(f"1 is not added to the {node.op}, or the {node.op} has other readers")
        for product, factors in _products(graph, shifted.outputs[0]):
            rest = [t for t in factors if t is not x]
            if len(factors) == 2 and len(rest) == 1 and _is_value(rest[0], 0.5):
                return _Activation(product, x, ops.GELUS["Gelu" if erf else "GeluTanh"])
        return Refusal(f"1 + {node.op.lower()} is not multiplied by '{x.name}' and by one half")

    def rewrite(self, model: Model, graph: gs.Graph, match: _Activation) -> str:
        """See `Rule.rewrite`."""
        return _place_activation(model, graph, match)


def _place_activation(model: Model, graph: gs.Graph, match: _Activation) -> str:
    name = canonical_name(model, match.node, match.spec.name.lower())
    place(graph, match.spec, name, [match.x], match.node)
    return f"{match.spec.name} '{name}'"


class ActivationOpRule(Rule):
    """Gelu (opset 20), Gelu, BiasGelu and FastGelu of com.microsoft -> Gelu, GeluTanh."""

    name = "gelu-op"
    anchors = ("Gelu", "FastGelu", "BiasGelu")

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if query.is_op(node, "Gelu"):
            approximate = node.attrs.get("approximate", "none")
            tanh = (approximate.decode() if isinstance(approximate, bytes) else approximate) == "tanh"
        elif query.is_op(node, *self.anchors, domain=_MICROSOFT):
            tanh = node.op == "FastGelu"
        else:
            return None
        return _Activation(node, node.inputs[0], ops.GELUS["GeluTanh" if tanh else "Gelu"])

    def rewrite(self, model: Model, graph: gs.Graph, match: _Activation) -> str:
        """See `Rule.rewrite`."""
        node = match.node
        if len(node.inputs) < 2 or node.inputs[1].is_empty():
            return _place_activation(model, graph, match)
        (output,) = take_outputs(node)
        summed = Emitter(model, graph, node.name).op("Add", match.x, node.inputs[1], like=match.x)
        node.outputs.append(output)
        return "Add and " + _place_activation(model, graph, _Activation(node, summed, match.spec))


class GateRule(Rule):
    """Mul(activation(gate), up) -> GatedSilu, GatedGelu, GatedGeluTanh."""

    name = "gated"
    anchors = ("Mul",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Mul"):
            return None
        for activated, up in (node.inputs, node.inputs[::-1]):
            found = _activation(activated)
            if found is None:
                continue
            gate, spec = found
            if query.is_constant(up):
                return Refusal(f"'{up.name}' that the activation is multiplied by is a constant, no gate")
            if not _same_shape(gate, up):
                return Refusal(f"the shapes of gate '{gate.name}' and '{up.name}' differ or are not known")
            return _Gate(node, gate, up, spec)
        return None

    def rewrite(self, model: Model, graph: gs.Graph, match: _Gate) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node, match.spec.name.lower())
        place(graph, match.spec, name, [match.gate, match.up], match.node)
        return f"{match.spec.name} '{name}'"


def _activation(tensor: gs.Tensor) -> tuple[gs.Tensor, OpSpec] | None:
    """Return the gate and the gated op if ``tensor`` is an activation of it."""
    node = query.producer(tensor)
    for name, spec in ops.GELUS.items():
        if spec.is_node(node) and node is not None:
            return node.inputs[0], ops.GATED[name]
    if node is not None and query.is_op(node, "QuickGelu", domain=_MICROSOFT) and node.attrs.get("alpha", 1.702) == 1.0:
        return node.inputs[0], ops.GATED["Silu"]
    for gate, sigmoid in _operands(tensor, "Mul"):
        maker = query.producer(sigmoid)
        if maker is not None and query.is_op(maker, "Sigmoid") and maker.inputs[0] is gate:
            return gate, ops.GATED["Silu"]
    return None


def _same_shape(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two tensors are known not to broadcast: equal ranks, and no dimension that is 1 in just one of them."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    if any((p == 1) != (q == 1) for p, q in zip(a.shape, b.shape, strict=True)):
        return False
    known = [(p, q) for p, q in zip(a.shape, b.shape, strict=True) if isinstance(p, int) and isinstance(q, int)]
    return all(p == q for p, q in known) and isinstance(a.shape[-1], int) and isinstance(b.shape[-1], int)


RULES = (ActivationRule(), ActivationOpRule())
#: Looks at Gelu and GeluTanh nodes, so it runs after all of them exist.
GATE_RULES = (GateRule(),)
