"""Comparing two models layer by layer, and saying what is probably wrong with the first layer that differs."""

__all__ = ["Culprit", "LayerDifference", "compare_layers", "find_culprit", "uncompared"]

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.calibrate import taps
from graphopt.calibrate.feeds import Feed
from graphopt.calibrate.taps import Run, Tap, TappedModel
from graphopt.compare.causes import Evidence, likely_cause
from graphopt.compare.linears import bits_per_weight, weight_layers
from graphopt.compare.metrics import Difference, DifferenceMeter, Tolerance
from graphopt.compare.side import Side
from graphopt.core.canonical import LINEAR_OPS
from graphopt.core.op import DOMAIN
from graphopt.ir import query, weights
from graphopt.passes import OPS
from graphopt.passes.canonicalize.naming import module_path
from graphopt.passes.mixq.merge import SEPARATOR

#: Ops that move values and change none; what a value comes from is in front of them.
_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Split", "Slice")
#: A model, and what it is fed with.
Fed = tuple[Side, Sequence[Feed]]


@dataclass(frozen=True)
class LayerDifference(Difference):
    """Difference of the output of one weight layer.

    Attributes:
        layer: its name, as recipes call it.
    """

    layer: str


@dataclass(frozen=True)
class Culprit:
    """The first layer that differs: node, value, and a clause that says why it probably does."""

    layer: str
    value: str
    cause: str


def compare_layers(ours: Fed, theirs: Fed, tolerance: Tolerance) -> tuple[LayerDifference, ...]:
    """Compare the outputs of weight layers of either model that both compute under the same name.

    Returns:
        One difference each, in the reference's order.
    """
    common = _common_layers(ours[0].model, theirs[0].model)
    meters = {tap: DifferenceMeter(tap.tensor, tolerance) for tap in common}
    # Shapes are compared by the meter, so rows need only be about right: they decide the size of a group.
    with TappedModel(ours[0].model) as our_taps, TappedModel(theirs[0].model) as their_taps:
        for group in taps.grouped(common, max(map(taps.rows, theirs[1])), taps.BUDGET):
            with ExitStack() as stack:
                pair = [t.open(group, _starter(stack, *f)) for t, f in ((our_taps, ours), (their_taps, theirs))]
                for our_feed, feed in zip(ours[1], theirs[1], strict=True):
                    a, b = pair[0].run(our_feed), pair[1].run(feed)
                    for tap in group:
                        meters[tap].update(a.pop(tap.tensor), b.pop(tap.tensor))
    makers = _makers(ours[0].model)
    return tuple(_of_layer(makers[tap.tensor][0], meter.result()) for tap, meter in meters.items())


def _of_layer(layer: str, difference: Difference) -> LayerDifference:
    return LayerDifference(**{f.name: getattr(difference, f.name) for f in fields(Difference)}, layer=layer)


def uncompared(reference: ir.Model, layers: Iterable[LayerDifference]) -> tuple[str, ...]:
    """Return the names of the weight layers of ``reference`` that are not among ``layers``, in graph order."""
    compared, makers = {d.layer for d in layers}, _makers(reference)
    return tuple(name for w in weight_layers(reference) if (name := makers[w.output][0]) not in compared)


def _starter(stack: ExitStack, side: Side, feeds: Sequence[Feed]) -> Callable[[Path], Run]:
    """Return what runs the file of a group of taps as ``side`` is run, until ``stack`` ends."""

    def start(path: Path) -> Run:
        return stack.enter_context(side.running(feeds, path)).infer

    return start


def _common_layers(model: ir.Model, reference: ir.Model) -> list[Tap]:
    layers = {layer.output: layer.outputs for m in (model, reference) for layer in weight_layers(m)}
    computed = {t.name for node in model.graph.nodes for t in node.outputs}
    names = [t.name for node in reference.graph.nodes for t in node.outputs]
    return [Tap(name, layers[name]) for name in names if name in layers and name in computed]


def find_culprit(layers: Sequence[LayerDifference], ours: Fed, theirs: Fed) -> Culprit | None:
    """Return the first layer that is beyond its tolerance, with the cause that the first feed points to."""
    bad = next((d for d in layers if not d.passed), None)
    if bad is None:
        return None
    (_, node), (_, reference) = (_makers(side.model)[bad.name] for side, _ in (ours, theirs))
    source = reference.inputs[0]
    x = theirs[1][0].get(source.name) if query.producer(source) is None else _value(theirs, source.name)
    evidence = Evidence(
        ours=_value(ours, bad.name),
        reference=_value(theirs, bad.name),
        x=x,
        dtype=_dtype(node.outputs[0]),
        difference=bad,
        **_quantized(node, reference, _bits(ours[0].model, node)),
        parted=None if x is None or _is_lowered(node) else _parted(ours, node, x, bad),
    )
    return Culprit(bad.layer, bad.name, likely_cause(evidence))


def _is_lowered(node: gs.Node) -> bool:
    """Whether a scheme made ``node``."""
    return node.domain == DOMAIN and node.op not in LINEAR_OPS


def _quantized(node: gs.Node, reference: gs.Node, bits: float | None) -> dict[str, Any]:
    """What `Evidence` says of how ``node`` is quantized and ``reference`` is not; of the same op, only which it is."""
    if not _is_lowered(node):
        return {"outliers": None}
    if node.op == reference.op:
        return {"outliers": None, "same_op": node.op}
    taken = _operands(node)
    outliers = _outliers(node) if "xo" in taken else None
    return {"outliers": outliers, "weight_bits": bits, "int8_input": "xq" in taken}


def _bits(model: ir.Model, node: gs.Node) -> float | None:
    """Bits per weight of the layer that ``node`` is."""
    return bits_per_weight(w for w in weight_layers(model) if w.output == node.outputs[0].name)


def _parted(fed: Fed, node: gs.Node, x: np.ndarray, bad: LayerDifference) -> tuple[str, float] | None:
    """The op that made the input of ``node``, and how far it is from ``x``; None if it is about as near as rounding."""
    source = node.inputs[0]
    made = maker = query.producer(source)
    while maker is not None and query.is_op(maker, *_LAYOUT):
        made, maker = maker, query.producer(maker.inputs[0])
    if made is None:
        return None
    meter = DifferenceMeter(source.name, Tolerance(rtol=bad.normalized / 2))
    meter.update(_value(fed, source.name), x)
    found = meter.result()
    return None if found.passed else ((maker or made).op, found.normalized)


def _makers(model: ir.Model) -> dict[str, tuple[str, gs.Node]]:
    """Return the layer and the node that make each value; of merged linears the name of the one and the node of all."""
    makers: dict[str, tuple[str, gs.Node]] = {}
    for node in model.graph.nodes:
        whole = query.producer(node.inputs[0]) if query.is_op(node, "Split") else None
        names = [] if whole is None else str(whole.name).split(SEPARATOR)
        if whole is None or len(names) != len(node.outputs):
            names, whole = [_layer_name(node)] * len(node.outputs), node
        makers |= {t.name: (name, whole) for t, name in zip(node.outputs, names, strict=True)}
    return makers


def _layer_name(node: gs.Node) -> str:
    """The name of ``node``, but what the canonical form will call a product that is not canonical yet."""
    return (module_path(node) if query.is_op(node, "MatMul", "Gemm") else None) or str(node.name)


def _value(fed: Fed, name: str) -> np.ndarray:
    """One inner value of a model on its first feed, float32."""
    side, feeds = fed
    tap = Tap(name, 1)
    with TappedModel(side.model) as tapped, ExitStack() as stack:
        return tapped.open([tap], _starter(stack, side, feeds[:1])).run(feeds[0])[name]


def _dtype(tensor: gs.Tensor) -> str | None:
    return None if tensor.dtype is None else str(weights.numpy_dtype(weights.onnx_dtype(tensor.dtype)))


def _operands(node: gs.Node) -> dict[str, gs.Tensor]:
    """The inputs of a custom op by the names that its definition gives them; none of other nodes."""
    spec = next((s for s in OPS if s.is_node(node)), None)
    return {} if spec is None else {p.name: t for p, t in zip(spec.inputs, node.inputs, strict=True)}


def _outliers(node: gs.Node) -> np.ndarray | None:
    """The outlier channels of a lowered linear, which its quantizing op has; None for other nodes."""
    quantizer = query.producer(node.inputs[0])
    idx = None if quantizer is None else _operands(quantizer).get("idx")
    if not isinstance(idx, gs.Constant):
        return None
    channels: np.ndarray = weights.read(idx)
    return channels[channels >= 0]
