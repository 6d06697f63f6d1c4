"""Run two models on the same feeds and compare what they say: outputs, and on request the layers that both have."""

__all__ = ["Comparison", "compare_models"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt import ir
from graphopt.calibrate.feeds import Feed
from graphopt.calibrate.session import Session
from graphopt.calibrate.taps import BUDGET, Tap, TappedModel, grouped, rows
from graphopt.compare.linears import weight_layers
from graphopt.compare.metrics import Difference, DifferenceMeter, Tolerance
from graphopt.errors import ModelError, nearest


@dataclass(frozen=True)
class Comparison:
    """What came out of comparing a model with its reference.

    Attributes:
        outputs: one difference for each output that both have, in the reference's order.
        layers: one for each weight layer whose output both have, in graph order; empty unless asked for.
        missing: outputs of the reference that the model lacks.
        samples: number of feeds.
    """

    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    missing: tuple[str, ...]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether every output of the reference is there and within the tolerance. Layers do not count."""
        return not self.missing and all(d.passed for d in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {
            "passed": self.passed,
            "samples": self.samples,
            "missing": list(self.missing),
            "outputs": [d.to_dict() for d in self.outputs],
            "layers": [d.to_dict() for d in self.layers],
        }


def compare_models(
    model: Path,
    reference: Path,
    feeds: Sequence[Feed],
    tolerance: Tolerance,
    *,
    per_layer: bool = False,
    optimize: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run both models on ``feeds``.

    Args:
        model: ONNX file to judge.
        reference: ONNX file to judge it by.
        feeds: for the reference's inputs; the model must have the same.
        tolerance: what counts as equal.
        per_layer: also compare the outputs of weight layers (by name of the value).
        optimize: whether ONNX Runtime may rewrite the graphs; off shows differences of the files alone.
        threads: for ONNX Runtime (default: all cores).
        progress: called with (feeds done, feeds in all).

    Raises:
        ModelError: a file cannot be run, or the two have different inputs or no output in common.
    """
    models = ir.load(model), ir.load(reference)
    _check_inputs(*models, model, reference)
    sessions = [Session(p, optimize=optimize, threads=threads) for p in (model, reference)]
    common = [name for name in sessions[1].outputs if name in sessions[0].outputs]
    missing = [name for name in sessions[1].outputs if name not in sessions[0].outputs]
    if not common:
        raise ModelError(f"{model} and {reference} have no output in common{nearest(missing[0], sessions[0].outputs)}")
    meters = {name: DifferenceMeter(name, tolerance) for name in common}
    for number, feed in enumerate(feeds):
        ours, theirs = (session.run(feed, common) for session in sessions)
        for name, meter in meters.items():
            meter.update(ours[name], theirs[name])
        if progress:
            progress(number + 1, len(feeds))
    del sessions
    layers = _compare_layers(*models, feeds, tolerance, optimize=optimize, threads=threads) if per_layer else ()
    return Comparison(tuple(m.result() for m in meters.values()), layers, tuple(missing), len(feeds))


def _check_inputs(model: ir.Model, reference: ir.Model, path: Path, reference_path: Path) -> None:
    names, expected = ([t.name for t in m.graph.inputs] for m in (model, reference))
    for name in expected:
        if name not in names:
            raise ModelError(f"{path} has no input '{name}', which {reference_path} has{nearest(name, names)}")
    for name in names:
        if name not in expected:
            raise ModelError(f"{path} has an input '{name}', which {reference_path} lacks{nearest(name, expected)}")


def _compare_layers(
    model: ir.Model,
    reference: ir.Model,
    feeds: Sequence[Feed],
    tolerance: Tolerance,
    *,
    optimize: bool,
    threads: int | None,
) -> tuple[Difference, ...]:
    taps = _common_layers(model, reference)
    meters = {tap: DifferenceMeter(tap.tensor, tolerance) for tap in taps}
    # Shapes are compared by the meter, so rows need only be about right: they decide the size of a group.
    with (
        TappedModel(model, optimize=optimize, threads=threads) as ours,
        TappedModel(reference, optimize=optimize, threads=threads) as theirs,
    ):
        for group in grouped(taps, max(map(rows, feeds)), BUDGET):
            pair = ours.open(group), theirs.open(group)
            for feed in feeds:
                a, b = (session.run(feed) for session in pair)
                for tap in group:
                    meters[tap].update(a.pop(tap.tensor), b.pop(tap.tensor))
    return tuple(m.result() for m in meters.values())


def _common_layers(model: ir.Model, reference: ir.Model) -> list[Tap]:
    """Outputs of weight layers of either model that both compute under the same name, in the reference's order."""
    layers = {layer.output: layer.outputs for m in (model, reference) for layer in weight_layers(m)}
    computed = {t.name for node in model.graph.nodes for t in node.outputs}
    names = [t.name for node in reference.graph.nodes for t in node.outputs]
    return [Tap(name, layers[name]) for name in names if name in layers and name in computed]
