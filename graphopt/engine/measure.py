"""How long an engine takes: latency percentiles, the time of its layers by op, and what is slower than elsewhere."""

__all__ = ["Latency", "OpTime", "SlowLayer", "by_op", "latency", "read_slower", "slower"]

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.engine.run import LayerTime, Runner
from graphopt.errors import EngineError

_WARMUP = 5
#: Losses below this ratio are within the spread of a layer's time.
_SLOWER = 1.05
#: Between the names of linears of the model in that of the plugin that they became.
_MERGED = " + "
#: In the names of plugins that stand for a linear of the model.
_LINEAR = "Linear"


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


@dataclass(frozen=True)
class SlowLayer:
    """Nodes of the model that take longer in an engine than in its baseline.

    Attributes:
        names: the nodes that run as plugins of ours; those that TensorRT fused in either engine are one entry.
        us: time of their layers per run, in microseconds.
        baseline_us: the same in the baseline.
    """

    names: tuple[str, ...]
    us: float
    baseline_us: float

    @property
    def sentence(self) -> str:
        """What to tell the user."""
        names = " and ".join(f"'{name}'" for name in self.names)
        verb = "takes" if len(self.names) == 1 else "together take"
        return (
            f"{names} {verb} {self.us:.1f} us, {self.us / self.baseline_us:.2f} times the {self.baseline_us:.1f} us "
            "of the baseline"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `read_slower` reads."""
        return {
            "names": list(self.names), "us": self.us, "baseline_us": self.baseline_us, "sentence": self.sentence
        }  # fmt: skip


def slower(layers: Iterable[LayerTime], baseline: Iterable[LayerTime]) -> list[SlowLayer]:
    """Compare what has a name in both engines; the largest loss first.

    A layer of an engine stands for the nodes that its name lists. Layers of the two engines that share a node are
    compared together with all that overlap with them. What TensorRT fused beyond recognition is left out.
    """
    groups: list[_Overlap] = []
    for layer, ours in [*((x, True) for x in layers), *((x, False) for x in baseline)]:
        nodes = _nodes_of(layer.name)
        met = [g for g in groups if g.nodes & nodes]
        groups = [g for g in groups if not g.nodes & nodes]
        merged = _Overlap(set(nodes), 0.0, 0.0, [])
        for group in met:
            merged.nodes |= group.nodes
            merged.us += group.us
            merged.baseline_us += group.baseline_us
            merged.plugins += group.plugins
        if ours:
            merged.us += layer.us
            merged.plugins += layer.name.split(_MERGED) if _LINEAR in layer.op else []
        else:
            merged.baseline_us += layer.us
        groups.append(merged)
    found = [
        SlowLayer(tuple(g.plugins), g.us, g.baseline_us)
        for g in groups
        if g.plugins and g.baseline_us and g.us > _SLOWER * g.baseline_us
    ]
    return sorted(found, key=lambda s: s.baseline_us - s.us)


@dataclass
class _Overlap:
    """Layers of both engines that share nodes."""

    nodes: set[str]
    us: float
    baseline_us: float
    plugins: list[str]


def _nodes_of(layer: str) -> set[str]:
    """Return the node names in the name of a layer.

    >>> sorted(_nodes_of("PWN(/a/Sigmoid, /a/Mul) + /b/MatMul || /c/MatMul"))
    ['/a/Mul', '/a/Sigmoid', '/b/MatMul', '/c/MatMul']
    """
    copied = re.sub(r"^Reformatting CopyNode for (Input|Output) Tensor \d+ to ", "", layer)
    return {part for part in re.split(r" \+ |\|\||PWN\(|, |\)|\s", copied) if part}


def read_slower(path: Path) -> dict[str, str]:
    """Return the layers that ``graphopt bench engine --baseline --json`` found slower: name -> why it is left out.

    Raises:
        EngineError: the file is no such measurement.
    """
    if not path.is_file():
        raise EngineError(f"{path} does not exist; 'graphopt bench engine --baseline PLAN --json' prints such a file")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["slower"]
        return {str(name): f"{path.name}: {entry['sentence']}" for entry in entries for name in entry["names"]}
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise EngineError(
            f"{path} is not what 'graphopt bench engine --baseline PLAN --json' prints ({type(e).__name__})"
        ) from e
