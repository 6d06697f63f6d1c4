"""Run two models on the same feeds and compare what they say: outputs, and on request the layers that both have."""

__all__ = ["Comparison", "compare_models"]

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.calibrate.feeds import Feed
from graphopt.compare.layers import Culprit, LayerDifference, compare_layers, find_culprit, uncompared
from graphopt.compare.metrics import Difference, DifferenceMeter, Tolerance
from graphopt.compare.side import Side
from graphopt.errors import ModelError, nearest
from graphopt.ir.kv_cache import KvCache

#: The format in which a cache is as the model's author left it: rows of the activation type.
_PLAIN = "static"


@dataclass(frozen=True)
class Comparison:
    """What came out of comparing a model with its reference.

    Attributes:
        outputs: one difference for each output that both have, in the reference's order.
        layers: one for each weight layer whose output both have, in graph order; empty unless asked for.
        missing: outputs of the reference that the model lacks.
        other_form: outputs that hold the cache, which the two keep in different formats: nothing to compare.
        samples: number of feeds.
        culprit: the first of ``layers`` that is beyond the tolerance, with its likely cause; None without one.
        uncompared: weight layers of the reference whose output the model computes under no name, such as merged ones.
    """

    outputs: tuple[Difference, ...]
    layers: tuple[LayerDifference, ...]
    missing: tuple[str, ...]
    samples: int
    culprit: Culprit | None = None
    uncompared: tuple[str, ...] = ()
    other_form: tuple[str, ...] = ()

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
            "other_form": list(self.other_form),
            "outputs": [d.to_dict() for d in self.outputs],
            "layers": [d.to_dict() for d in self.layers],
            "uncompared": list(self.uncompared),
            "culprit": None if self.culprit is None else asdict(self.culprit),
        }


def compare_models(
    model: Path | Side,
    reference: Path | Side,
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
        model: what to judge: a file, run as its ending says, or a side.
        reference: what to judge it by.
        feeds: for the reference's inputs; the model must have the same, or take tokens and what follows from them.
        tolerance: what counts as equal.
        per_layer: also compare the outputs of weight layers (by name of the value), and look for the cause of the first
            difference; of ONNX files only.
        optimize, threads: of `Side`, where files are given.
        progress: called with (feeds done, feeds in all).

    Raises:
        ModelError: a file cannot be run, the two have different inputs or no output in common, or the layers of a plan
            are asked for.
    """
    ours, theirs = (
        side if isinstance(side, Side) else Side(side, optimize=optimize, threads=threads)
        for side in (model, reference)
    )
    if per_layer and (plan := next((s.path for s in (ours, theirs) if s.is_plan), None)):
        raise ModelError(f"the layers of {plan} cannot be read; give the model it was built from, with --runner trt")
    our_feeds = ours.feeds_like(theirs, feeds)
    with ExitStack() as stack:
        a, b = stack.enter_context(ours.running(our_feeds)), stack.enter_context(theirs.running(feeds))
        common = [name for name in b.outputs if name in a.outputs]
        missing = [name for name in b.outputs if name not in a.outputs]
        if not common:
            known = nearest(missing[0], a.outputs)
            raise ModelError(f"{ours.path} and {theirs.path} have no output in common{known}")
        formats = [_presents(runner.cache) for runner in (a, b)]
        other_form = tuple(name for name in common if len({f.get(name, _PLAIN) for f in formats}) > 1)
        cached = {name for name in common if any(name in f for f in formats)}
        meters = {name: DifferenceMeter(name, tolerance) for name in common if name not in other_form}
        for number, (our_feed, feed) in enumerate(zip(our_feeds, feeds, strict=True)):
            values, expected = a.infer(our_feed, list(meters)), b.infer(feed, list(meters))
            for name, meter in meters.items():
                pair = (values[name], expected[name])
                meter.update(*(_filled(*pair) if name in cached else pair))
            if progress:
                progress(number + 1, len(feeds))
    outputs = tuple(m.result() for m in meters.values())
    if not per_layer:
        return Comparison(outputs, (), tuple(missing), len(feeds), other_form=other_form)
    layers = compare_layers((ours, our_feeds), (theirs, feeds), tolerance)
    culprit = find_culprit(layers, (ours, our_feeds), (theirs, feeds))
    unnamed = uncompared(theirs.model, layers)
    return Comparison(outputs, layers, tuple(missing), len(feeds), culprit, unnamed, other_form)


def _presents(cache: KvCache | None) -> dict[str, str]:
    """The format of every output that holds a cache which is updated in place."""
    if cache is None:
        return {}
    form = _PLAIN if cache.kind == _PLAIN else f"{cache.kind} of {cache.bits} bits"
    return dict.fromkeys((present for _, present in cache.pairs), form)


def _filled(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows (axis 2) that both have: a cache updated in place may have more than are filled, one that grows has not.

    Feeds begin with an empty cache, so filled rows come first.
    """
    rows = min(a.shape[2], b.shape[2])
    return a[:, :, :rows], b[:, :, :rows]
