"""Reading inner values of a model: they become extra graph outputs, a bounded number of them at a time."""

__all__ = ["BUDGET", "Run", "Tap", "TappedModel", "grouped", "rows"]

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

from graphopt import ir
from graphopt.calibrate.feeds import TOKENS, Feed
from graphopt.calibrate.session import Session
from graphopt.calibrate.widen import widen
from graphopt.errors import OutputError

#: Bytes of inner values of one model held at once, unless told otherwise.
BUDGET = 1 << 29
_PREFIX = "graphopt_tap:"
#: (feed, names of outputs) -> those outputs.
Run = Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Tap:
    """A value of the main graph by name, and the size of its last axis."""

    tensor: str
    channels: int


def rows(feed: Feed) -> int:
    """Number of rows (tokens) that an inner value of a run on ``feed`` is expected to have."""
    if TOKENS in feed:
        return max(1, feed[TOKENS].size)
    return max([1, *(int(a.size) // int(a.shape[-1]) for a in feed.values() if a.ndim and a.shape[-1])])


def grouped(
    taps: Iterable[Tap], row_count: int, budget: int, *, extra: Mapping[str, int] | None = None
) -> list[list[Tap]]:
    """Cut ``taps``, in order, into groups whose values take at most ``budget`` bytes; a big tap is a group by itself.

    Args:
        taps: in graph order.
        row_count: rows of each value.
        budget: bytes.
        extra: further bytes that a tap (by tensor name) needs while its group is processed.
    """
    groups: list[list[Tap]] = []
    left = 0
    for tap in taps:
        cost = row_count * tap.channels * 4 + (extra or {}).get(tap.tensor, 0)
        if not groups or cost > left:
            groups.append([])
            left = budget
        groups[-1].append(tap)
        left -= cost
    return groups


class TappedModel:
    """A model written to a temporary folder once, from which any group of inner values can be run; a context manager.

    The group's model holds only the nodes that its values need, so a pass over the first layers does not pay for the
    last. Values arrive as float32 whatever their type in the graph.

    Args:
        model: not changed.
        optimize, threads: as in `Session`.
        wide: whether to compute bfloat16 in float32.
    """

    def __init__(
        self, model: ir.Model, *, optimize: bool = True, threads: int | None = None, wide: bool = False
    ) -> None:
        self._model, self._optimize, self._threads, self._wide = model, optimize, threads, wide
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "TappedModel":
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-taps-")
        self._path = Path(self._folder.name) / "model.onnx"
        try:
            ir.save(self._model, self._path)
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def open(self, taps: Sequence[Tap], start: Callable[[Path], Run] | None = None) -> "TapSession":
        """Return a session that yields the values of ``taps``.

        Args:
            taps: of the main graph.
            start: what runs the group's file; None for ONNX Runtime.

        Raises:
            ModelError: ONNX Runtime refuses the model.
            OutputError: the temporary folder is full.
        """
        proto = onnx.load(self._path, load_external_data=False)
        _keep_only(proto.graph, [t.tensor for t in taps])
        if self._wide:
            widen(proto)
        path = self._path.with_name("taps.onnx")
        try:
            path.write_bytes(proto.SerializeToString())
        except OSError as e:
            raise OutputError(f"cannot write {path}: {e.strerror or e}; point TMPDIR to a folder with room") from e
        run = start(path) if start else Session(path, optimize=self._optimize, threads=self._threads).run
        return TapSession(run, taps, {i.name for i in proto.graph.input}, wide=self._wide)


class TapSession:
    """A session on one group of taps; made by `TappedModel.open`."""

    def __init__(self, run: Run, taps: Sequence[Tap], inputs: set[str], *, wide: bool) -> None:
        self._run, self._taps, self._inputs, self._wide = run, taps, inputs, wide

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the taps' values by tensor name, float32, of the model run on ``feed``."""
        names = [_PREFIX + tap.tensor for tap in self._taps]
        given = {n: self._typed(a) for n, a in feed.items() if n in self._inputs}
        values = self._run(given, names)
        return {tap.tensor: values[name] for tap, name in zip(self._taps, names, strict=True)}

    def _typed(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32) if self._wide and array.dtype == ml_dtypes.bfloat16 else array


def _keep_only(graph: onnx.GraphProto, tensors: Sequence[str]) -> None:
    """Make ``tensors``, cast to float32, the only outputs of ``graph``, and drop what they do not need."""
    needed = set(tensors)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    kept = [
        *reversed(nodes),
        *(helper.make_node("Cast", [t], [_PREFIX + t], name=_PREFIX + t, to=onnx.TensorProto.FLOAT) for t in tensors),
    ]
    initializers = [t for t in graph.initializer if t.name in needed]
    inputs = [i for i in graph.input if i.name in needed]
    for field, values in ((graph.node, kept), (graph.initializer, initializers), (graph.input, inputs)):
        copies = [type(v).FromString(v.SerializeToString()) for v in values]
        del field[:]
        field.extend(copies)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(_PREFIX + t, onnx.TensorProto.FLOAT, None) for t in tensors)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that ``node`` reads, in its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for sub in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            names.update(*(_reads(n) for n in sub.node), [o.name for o in sub.output])
    return names - {""}
