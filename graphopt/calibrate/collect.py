"""Statistics of the inputs of linears, measured by running the canonical model in ONNX Runtime."""

__all__ = ["collect", "linear_inputs"]

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.calibrate.feeds import Feed
from graphopt.calibrate.observers import ChannelObserver
from graphopt.calibrate.taps import BUDGET, Tap, TappedModel, grouped, rows
from graphopt.core.canonical import linears
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.errors import CalibrationError


def linear_inputs(model: ir.Model) -> dict[Tap, list[str]]:
    """Return the inputs of the canonical linears in graph order, each with the names of the linears that share it.

    Linears that no scheme can lower (weight computed at run time, or of size zero) are left out.
    """
    taps: dict[Tap, list[str]] = {}
    for linear in linears(model):
        if isinstance(linear.weight, gs.Constant) and len(linear.weight.shape) == 2 and 0 not in linear.weight.shape:
            taps.setdefault(Tap(linear.x.name, linear.shape[1]), []).append(linear.name)
    return taps


def collect(
    model: ir.Model,
    feeds: Sequence[Feed],
    *,
    second_moment: bool = False,
    budget: int = BUDGET,
    threads: int | None = None,
    source: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Run ``model`` on ``feeds`` and return the statistics of every linear's input.

    Linears with the same input share one observation. Inner values beyond ``budget`` bytes are measured in several
    passes over the feeds, so that memory does not grow with the depth of the model.

    Args:
        model: canonical, with the bodies of its custom ops attached; not changed.
        feeds: at least one; each is run by itself.
        second_moment: whether to measure XᵀX too; K²·4 bytes for each distinct input.
        budget: bytes of inner values, and of second moments being summed, held at once.
        threads: for ONNX Runtime (default: all cores).
        source: where the feeds come from, kept in the result.
        progress: called with (runs done, runs in all).

    Raises:
        CalibrationError: no feeds, no linears, or an activation that is NaN or Inf.
        ModelError: ONNX Runtime refuses the model or a feed.
    """
    shared = linear_inputs(model)
    if not shared:
        raise CalibrationError(
            "the model has no linear layers to calibrate; 'graphopt inspect' lists what was recognized"
        )
    if not feeds:
        raise CalibrationError("no calibration samples were given")
    extra = {tap.tensor: 4 * tap.channels**2 for tap in shared} if second_moment else None
    groups = grouped(shared, max(map(rows, feeds)), budget, extra=extra)
    result = Statistics(source=source or {})
    done = 0
    with TappedModel(model, threads=threads, wide=True) as tapped:
        for group in groups:
            session = tapped.open(group)
            observers = {tap: ChannelObserver(tap.channels, second_moment=second_moment) for tap in group}
            for feed in feeds:
                _observe(session.run(feed), observers, shared)
                done += 1
                if progress:
                    progress(done, len(feeds) * len(groups))
            for tap, observer in observers.items():
                result.linears |= dict.fromkeys(shared[tap], _entry(observer))
    return result


def _observe(values: dict[str, Any], observers: dict[Tap, ChannelObserver], shared: dict[Tap, list[str]]) -> None:
    for tap, observer in observers.items():
        # Popped, so that each value is freed as soon as it is summed.
        if not observer.update(values.pop(tap.tensor)):
            raise CalibrationError(
                f"the input of linear '{shared[tap][0]}' holds NaN or Inf during calibration; check the model's "
                "weights and the data, or calibrate it in a wider type"
            )


def _entry(observer: ChannelObserver) -> LinearStatistics:
    """The observer's statistics, with the second moment in an unnamed temporary file instead of in memory."""
    entry = observer.statistics()
    if entry.second_moment is not None:
        with tempfile.TemporaryFile() as file:
            spooled = np.memmap(file, np.float32, "w+", shape=entry.second_moment.shape)
        spooled[:] = entry.second_moment
        entry.second_moment = spooled
    return entry
