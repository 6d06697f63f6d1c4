"""Linears that read the same codes, as one: their weights one below the other, and a Split behind.

    q = MixQLinear(xq, sx, xo, Wq);  k = MixQLinear(xq, sx, xo, Wk);  v = MixQLinear(xq, sx, xo, Wv)
      =>  MixQLinear(xq, sx, xo, [Wq; Wk; Wv]) -> qkv;  Split(qkv) -> q, k, v

Every output channel is computed from its own row of W, so the result is the same to the last bit. One launch takes the
place of several, and more rows fill the multiprocessors better. Where a gate and its up-projection meet in a gated
activation and nowhere else, these two are merged by themselves: the activation's quantizing op then reads the halves of
the merged tensor, and there is no Split.
"""

__all__ = ["SEPARATOR", "batches", "gate_up_of", "split", "stack"]

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.canonical import LinearView
from graphopt.core.op import DOMAIN
from graphopt.core.producers import ACTIVATIONS
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.mixq.config import MixQConfig
from graphopt.passes.mixq.weight import QuantizedWeight

Configured = tuple[LinearView, MixQConfig]

#: Joins the names of linears to that of the product they became, as TensorRT joins names of what it fuses.
SEPARATOR = " + "
_GATED = tuple(f"Gated{name}" for name in ACTIVATIONS)


def batches(model: Model, linears: Sequence[Configured]) -> list[list[Configured]]:
    """Return the linears of one input by the product they go into, in order, a gate before its up-projection.

    A product takes weights of one type, bits and group, and constant biases; linears whose settings say
    ``merge: false`` stay alone, and so do those of ``auto`` that are no gate and up-projection.
    """
    mates = _gates_and_ups(model, [linear for linear, config in linears if _may_merge(linear, config)])
    found: dict[object, list[Configured]] = {}
    for linear, config in linears:
        activation = mates.get(id(linear.node))
        together = _may_merge(linear, config) and (config.merge is True or activation is not None)
        dtype = weights.onnx_dtype(linear.weight.dtype)
        kind = (config.bits, config.group, dtype, activation, None if together else linear.name)
        found.setdefault(kind, []).append((linear, config))
    for members in found.values():
        reader = query.sole_consumer(model.graph, members[0][0].node.outputs[0])
        if len(members) == 2 and query.is_op(reader, *_GATED, domain=DOMAIN):
            members.sort(key=lambda member: member[0].node.outputs[0] is not reader.inputs[0])
    return list(found.values())


def _may_merge(linear: LinearView, config: MixQConfig) -> bool:
    return config.merge is not False and (linear.bias is None or isinstance(linear.bias, gs.Constant))


def _gates_and_ups(model: Model, linears: Sequence[LinearView]) -> dict[int, int]:
    """Return, by id of the linear's node, the id of the gated activation that reads it and another of ``linears``."""
    readers: dict[int, list[LinearView]] = {}
    for linear in linears:
        activation = query.sole_consumer(model.graph, linear.node.outputs[0])
        if query.is_op(activation, *_GATED, domain=DOMAIN):
            readers.setdefault(id(activation), []).append(linear)
    pairs = {key: pair for key, pair in readers.items() if len({linear.shape[0] for linear in pair}) == 1 < len(pair)}
    return {id(linear.node): activation for activation, pair in pairs.items() for linear in pair}


def stack(parts: Sequence[QuantizedWeight]) -> dict[str, np.ndarray]:
    """Return a linear's operands for its weight, by name and in order: those of ``parts`` one below the other."""

    def below(arrays: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)

    stacked = {"wq": below([part.codes for part in parts])}
    groups = [part.groups for part in parts if part.groups is not None]
    if groups:
        stacked["sg"] = below(groups, axis=1)
    return {**stacked, "sw": below([part.scale for part in parts]), "wo": below([part.outliers for part in parts])}


def split(model: Model, outputs: Sequence[gs.Tensor], sizes: Sequence[int]) -> gs.Variable:
    """Return a new tensor (..., sum of ``sizes``) whose parts along the last axis are ``outputs``."""
    first = outputs[0]
    shape = None if first.shape is None else [*first.shape[:-1], sum(sizes)]
    merged = gs.Variable(model.unique_name(f"{first.name}_merged"), first.dtype, shape)
    parts = gs.Constant(model.unique_name(f"{first.name}_sizes"), np.array(sizes, np.int64))
    node = gs.Node("Split", model.unique_name(f"{first.name}_split"), {"axis": -1}, [merged, parts], list(outputs))
    model.graph.nodes.append(node)
    return merged


def gate_up_of(activation: gs.Node) -> gs.Tensor | None:
    """Return the tensor whose two halves the gated ``activation`` reads, the gate's first; None if there is none."""
    divide = query.producer(activation.inputs[0])
    if not query.is_op(activation, *_GATED, domain=DOMAIN) or not query.is_op(divide, "Split"):
        return None
    merged, halves = divide.inputs[0], list(divide.outputs)
    sizes = query.constant_array(divide.inputs[1]) if len(divide.inputs) == 2 else np.ones(2)
    last = [-1] if merged.shape is None else [-1, len(merged.shape) - 1]
    if len(halves) != 2 or divide.attrs.get("axis", 0) not in last or sizes is None or sizes[0] != sizes[1]:
        return None
    return merged if all(half is read for half, read in zip(halves, activation.inputs, strict=True)) else None
