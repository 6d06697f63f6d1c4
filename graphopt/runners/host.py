"""Runners on the CPU, from the ONNX file itself: ONNX Runtime, and onnx.reference, which defines the operators."""

__all__ = ["HostRunner", "ort_runner", "reference_evaluator", "reference_runner"]

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphopt import ir
from graphopt.calibrate.feeds import Input, declared
from graphopt.calibrate.session import Session
from graphopt.calibrate.taps import Run
from graphopt.engine.profiles import Profile, Shape
from graphopt.errors import ModelError
from graphopt.ir import kv_cache, origin
from graphopt.runners.protocol import Array

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator


class HostRunner:
    """An ONNX file on the CPU; see `graphopt.runners.protocol.Runner`.

    Args:
        path: the .onnx file.
        start: loads the file into what runs it.
        note: its name.

    Raises:
        ModelError: the file cannot be read or, on entry, run.
    """

    def __init__(self, path: Path, start: Callable[[], Run], note: str) -> None:
        model = ir.load(path)
        self.path, self.note = path, note
        self.inputs: tuple[Input, ...] = tuple(declared(model))
        self.outputs = tuple(str(t.name) for t in model.graph.outputs)
        self.cache = kv_cache.read(model.shell.metadata_props)
        self.scheme = origin.read(model.shell.metadata_props)
        self.profiles: tuple[Profile, ...] = ()
        self._start = start
        self._run: Run | None = None

    def __enter__(self) -> "HostRunner":
        self._run = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run = None

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See the protocol."""
        if self._run is None:
            self._run = self._start()
        return self._run(feeds, self.outputs if outputs is None else outputs)

    def loop(self, state: Mapping[str, str], shapes: Mapping[str, Shape], *, in_place: bool) -> "HostLoop":
        """See the protocol; arrays are never changed in place, so ``in_place`` says nothing new."""
        return HostLoop(self, state, shapes)


class HostLoop:
    """The state as arrays, handed back and forth; see `graphopt.runners.protocol.Loop`."""

    def __init__(self, runner: HostRunner, state: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
        types = {i.name: i.dtype for i in runner.inputs}
        self._runner, self._state = runner, dict(state)
        self._values: dict[str, Array] = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}

    def call(self, feeds: Mapping[str, Array], wanted: str, *, last: bool) -> Array:
        """See the protocol."""
        outputs = self._runner.infer({**feeds, **self._values}, [wanted, *self._state.values()])
        self._values = {past: outputs[present] for past, present in self._state.items()}
        rows: Array = outputs[wanted][0]
        return rows[-1:] if last else rows


def ort_runner(path: Path, *, optimize: bool = True, threads: int | None = None) -> HostRunner:
    """Return ``path`` in ONNX Runtime, where the functions in the file define its custom ops.

    Args:
        path: the .onnx file.
        optimize, threads: as in `graphopt.calibrate.session.Session`.
    """
    return HostRunner(path, lambda: Session(path, optimize=optimize, threads=threads).run, "ONNX Runtime")


@functools.cache
def reference_evaluator() -> "type[ReferenceEvaluator]":
    """Return onnx.reference's evaluator with an operator that it lacks before opset 19, though bodies of ours use it.

    DequantizeLinear of opset 19 takes more types than before and means the same. Functions of a model are evaluated by
    the class that evaluates the model, so the hook holds for them too.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.ops import load_op

    class Evaluator(ReferenceEvaluator):
        def _load_impl(self, node: onnx.NodeProto, input_types: onnx.TypeProto | None = None) -> Any:
            if (node.domain, node.op_type) == ("", "DequantizeLinear") and self.opsets[""] < 19:
                return load_op("", node.op_type, 19)
            return super()._load_impl(node, input_types)

    return Evaluator


def reference_runner(path: Path) -> HostRunner:
    """Return ``path`` in onnx.reference: slow, and as the ONNX specification says."""

    def start() -> Run:
        try:
            evaluator = reference_evaluator()(str(path))
        except Exception as e:  # whatever numpy and Python raise where the model does not fit together
            raise ModelError(f"onnx.reference cannot open {path}: {e}") from e

        def run(feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
            try:
                values = evaluator.run(list(outputs), dict(feeds))
            except Exception as e:
                raise ModelError(f"onnx.reference cannot run {path}: {type(e).__name__}: {e}") from e
            return {name: np.asarray(value) for name, value in zip(outputs, values, strict=True)}

        return run

    return HostRunner(path, start, "onnx.reference")
