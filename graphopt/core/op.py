"""`OpSpec`: one custom op, written once for every consumer.

Every custom op goes into a model twice: as a node of domain ``graphopt``, and as a model-local function whose body, in
standard ops, *is* its definition. ONNX Runtime and onnx.reference run the body; TensorRT runs our plugin where its
library is loaded. The numpy evaluator, the body and the kernel of an op are held equal by one contract test.
"""

__all__ = ["DOMAIN", "PLUGIN_NAMESPACE", "Attribute", "OpSpec", "Param", "attach_bodies", "custom_nodes"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from graphopt.core.body import BodyBuilder, shared
from graphopt.errors import InternalError
from graphopt.ir.model import Model

DOMAIN = "graphopt"
VERSION = 1
#: Namespace in which the plugin creators register. A node that names it gets the plugin whatever the parser's flags.
PLUGIN_NAMESPACE = "graphopt"


@dataclass(frozen=True)
class Param:
    """One input or output: its name and what it is (shape, dtype, unit)."""

    name: str
    doc: str


@dataclass(frozen=True)
class Attribute:
    """One attribute: name, default (its Python type is the attribute's type) and meaning."""

    name: str
    default: float | int
    doc: str


@dataclass(frozen=True)
class OpSpec:
    """A custom op.

    Attributes:
        name: the op_type, which is also the plugin's name.
        doc: one paragraph with the equation and its source.
        inputs, outputs: in order, and all of them always given: ONNX Runtime would accept omitted trailing ones,
            onnx.reference, onnx's strict shape inference and TensorRT's parser do not.
        body: writes the function body with a `BodyBuilder`, using the parameter names as value names.
        evaluate: numpy evaluator ``(*inputs, **attributes) -> tuple`` of all outputs.
        examples: makes one set of fresh inputs from a seeded generator and an activation dtype, for the contract tests.
        example_attributes: what a kernel needs besides to take the examples, in place of defaults.
        attributes: in order; all of them are always written, so that a plugin never misses a field.
        plugin: whether a TensorRT plugin of this name exists. Ops without one are inlined before a model is saved.
        family: the idea that several ops share, for reports (GatedAct, Linear, ...).
        damage: takes the constant inputs by name and the attributes; returns the name of one that no writer can have
            made and a clause that says why ("has type id 7, which ..."), or None. For ops whose kernels trust them.
    """

    name: str
    doc: str
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]
    body: Callable[[BodyBuilder], None]
    evaluate: Callable[..., tuple[np.ndarray, ...]]
    examples: Callable[[np.random.Generator, Any], Sequence[np.ndarray]]
    attributes: tuple[Attribute, ...] = ()
    example_attributes: dict[str, Any] = field(default_factory=dict)
    plugin: bool = False
    family: str = ""
    damage: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], tuple[str, str] | None] | None = None
    _functions: dict[int, onnx.FunctionProto] = field(default_factory=dict, compare=False, repr=False)

    def function(self, opset: int) -> onnx.FunctionProto:
        """Return the body as a FunctionProto for a model that imports ``opset``."""
        if opset not in self._functions:
            builder = BodyBuilder(opset)
            self.body(builder)
            names = [a.name for a in self.attributes]
            if self.plugin:
                names += ["plugin_version", "plugin_namespace"]
            self._functions[opset] = helper.make_function(
                DOMAIN,
                self.name,
                [p.name for p in self.inputs],
                [p.name for p in self.outputs],
                shared(builder.nodes, {p.name for p in self.outputs}),
                [helper.make_opsetid("", opset)],
                attributes=names,
                doc_string=self.doc,
            )
        return self._functions[opset]

    def node(self, name: str, inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor], **attrs: Any) -> gs.Node:
        """Return a node of this op; attributes not given take their defaults.

        Raises:
            InternalError: wrong number of inputs or outputs, or an attribute that the op does not have.
        """
        if len(inputs) != len(self.inputs) or len(outputs) != len(self.outputs):
            raise InternalError(f"{self.name} '{name}' built with {len(inputs)} inputs and {len(outputs)} outputs")
        if unknown := set(attrs) - {a.name for a in self.attributes}:
            raise InternalError(f"{self.name} has no attributes {sorted(unknown)}")
        values: dict[str, Any] = {a.name: type(a.default)(attrs.get(a.name, a.default)) for a in self.attributes}
        if self.plugin:
            values |= {"plugin_version": str(VERSION), "plugin_namespace": PLUGIN_NAMESPACE}
        return gs.Node(self.name, name, values, list(inputs), list(outputs), domain=DOMAIN)

    def is_node(self, node: gs.Node | None) -> bool:
        """Whether ``node`` is of this op."""
        return node is not None and node.op == self.name and node.domain == DOMAIN


def custom_nodes(model: Model) -> list[gs.Node]:
    """Return the nodes of the main graph and its subgraphs that are graphopt ops."""
    return [n for graph in model.all_graphs() for n in graph.nodes if n.domain == DOMAIN]


def attach_bodies(model: Model, specs: Iterable[OpSpec]) -> None:
    """Make the model's graphopt functions exactly those that its nodes use; functions of other domains stay.

    Raises:
        InternalError: a node of domain graphopt has no OpSpec among ``specs``.
    """
    known = {s.name: s for s in specs}
    used = sorted({n.op for n in custom_nodes(model)})
    if missing := [op for op in used if op not in known]:
        raise InternalError(f"no OpSpec for graphopt ops {missing}")
    model.functions = [f for f in model.functions if f.domain != DOMAIN]
    model.functions += [known[op].function(model.opset) for op in used]
    # A graph built in memory has no imports yet; graphsurgeon would add the standard one on export.
    imports = model.graph.import_domains or [helper.make_opsetid("", model.opset)]
    domains = [o for o in imports if o.domain != DOMAIN]
    model.graph.import_domains = [*domains, helper.make_opsetid(DOMAIN, VERSION)] if used else domains
