"""How long an engine takes: latency percentiles, and the time of its layers by op."""

__all__ = ["Latency", "OpTime", "by_op", "latency"]

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.engine.run import LayerTime, Runner

_WARMUP = 5


@dataclass(frozen=True)
class Latency:
    """GPU time of one run in microseconds, over ``samples`` runs: median, percentiles, and the fastest."""

    median_us: float
    p90_us: float
    p99_us: float
    min_us: float
    samples: int


@dataclass(frozen=True)
class OpTime:
    """Time of all layers of one op per run, in microseconds, and its share of the sum over ops."""

    op: str
    layers: int
    us: float
    share: float


def latency(runner: Runner, samples: int = 50) -> Latency:
    """Measure the bound shapes of ``runner`` by CUDA events around each run, after a warm-up.

    Raises:
        EngineError: the engine failed while running.
    """
    for _ in range(_WARMUP):
        runner.milliseconds()
    us = np.array([1e3 * runner.milliseconds() for _ in range(samples)])
    median, p90, p99 = np.percentile(us, (50, 90, 99))
    return Latency(float(median), float(p90), float(p99), float(us.min()), samples)


def by_op(layers: Iterable[LayerTime]) -> list[OpTime]:
    """Sum layer times by op, the slowest op first.

    >>> by_op([LayerTime("a", "MixQLinear", 3.0), LayerTime("b", "Softmax", 1.0)])[0].share
    0.75
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        groups[layer.op].append(layer.us)
    total = sum(map(sum, groups.values())) or 1.0
    times = [OpTime(op, len(us), sum(us), sum(us) / total) for op, us in groups.items()]
    return sorted(times, key=lambda t: -t.us)
