"""Taking the canonical op that makes a tensor out of the graph, for an op that does its work too."""

__all__ = ["Fusion", "adds_activations", "take_producer"]

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeGuard

import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.core.producers import PRODUCERS
from graphopt.ir import query
from graphopt.ir.model import Model
from graphopt.numerics.layers import GLUS


@dataclass(frozen=True)
class Fusion:
    """A producer that was taken out of the graph.

    Attributes:
        name: of `graphopt.core.producers.PRODUCERS`.
        inputs: those of the producer.
        outputs: those of the producer; what nobody reads is a new tensor.
        attributes: those of the producer.
    """

    name: str
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]
    attributes: dict[str, Any]


def take_producer(
    model: Model,
    x: gs.Tensor,
    readers: Collection[gs.Node],
    unread: Callable[[str], gs.Variable],
    *,
    halves: Callable[[gs.Node], gs.Tensor | None] | None = None,
) -> Fusion | None:
    """Take what makes ``x`` out of the graph, and the residual Add before a norm. None, if it does not fuse.

    Args:
        model: is changed.
        x: is an output of the fusion if others than ``readers`` read it.
        readers: nodes that will read what the new op makes of ``x``.
        unread: makes an output, "sum" or "y", that nobody reads; T, as wide as ``x``.
        halves: returns the tensor that holds both inputs of a gated activation side by side, if there is one.
    """
    producer = query.producer(x)
    if producer is None or producer.domain != DOMAIN or producer.op not in PRODUCERS:
        return None
    name, inputs, outputs = producer.op, list(producer.inputs), []
    attributes = {"epsilon": producer.attrs["epsilon"]} if "epsilon" in producer.attrs else {}
    if halves is not None and (whole := halves(producer)) is not None:
        name, inputs = GLUS[name.removeprefix("Gated")], [whole]
    if PRODUCERS[name].family == "Norm" and adds_activations(add := query.producer(inputs[0])):
        name, inputs, total = f"Add{name}", [*add.inputs, *inputs[1:]], add.outputs[0]
        emit_sum = query.is_output(model.graph, total) or len(query.consumers(total)) > 1
        if emit_sum:
            add.outputs.clear()
        outputs.append(total if emit_sum else unread("sum"))
        attributes["emit_sum"] = int(emit_sum)
    own = {id(node) for node in readers}
    emit_y = query.is_output(model.graph, x) or any(id(n) not in own for n in query.consumers(x))
    producer.outputs.clear()
    producer.inputs.clear()
    outputs.append(x if emit_y else unread("y"))
    return Fusion(name, inputs, outputs, {**attributes, "emit_y": int(emit_y)})


def adds_activations(node: gs.Node | None) -> TypeGuard[gs.Node]:
    """Whether ``node`` adds two activations of the same shape, which is known."""
    if node is None or not query.is_op(node, "Add"):
        return False
    a, b = node.inputs
    same = a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape) and None not in a.shape
    return same and not query.is_constant(a) and not query.is_constant(b)
