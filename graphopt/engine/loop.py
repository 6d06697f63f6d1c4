"""Calls of a plan whose outputs are inputs of the next call, and never leave the device."""

__all__ = ["PlanLoop"]

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from graphopt.engine.profiles import Shape
from graphopt.engine.run import Runner

Array = npt.NDArray[Any]


class PlanLoop:
    """A loop over a plan of one batch entry.

    State of one shape stays at one address, input and output alike, and calls of equal shapes are replayed as a CUDA
    graph. State that grows goes from the outputs' memory to the inputs' by exchanging the two.

    Args:
        runner: entered; what it had bound is lost.
        state: input -> the output that it is in the next call.
        shapes: of the inputs of ``state`` in the first call, whose values are zero.
        in_place: whether each of these inputs and its output have one shape and may have one address.
        cuda_graph: whether to replay.
    """

    def __init__(
        self,
        runner: Runner,
        state: Mapping[str, str],
        shapes: Mapping[str, Shape],
        *,
        in_place: bool,
        cuda_graph: bool = True,
    ) -> None:
        self._runner, self._state, self._in_place = runner, dict(state), in_place
        self._replay = cuda_graph and in_place
        self._state_shapes = dict(shapes)
        self._bound: dict[str, Shape] | None = None
        runner.share({output: given for given, output in state.items()} if in_place else {})

    def call(self, feeds: Mapping[str, Array], wanted: str, *, last: bool) -> Array:
        """Run the plan once; see `graphopt.runners.protocol.Loop`.

        Raises:
            EngineError: no profile takes the shapes, an input is missing, memory is short, or the plan failed.
        """
        runner = self._runner
        shapes = runner.shapes({**{name: array.shape for name, array in feeds.items()}, **self._state_shapes})
        first = self._bound is None
        if shapes != self._bound or not self._in_place:
            runner.bind(shapes)
            self._bound = shapes
        elif self._replay and not runner.captured:
            runner.record()
        if first:
            runner.clear(list(self._state))
        runner.upload(feeds)
        runner.execute()
        result: Array = runner.last_row(wanted) if last else runner.outputs_now(wanted)[wanted][0]
        if not self._in_place:
            self._state_shapes = {given: runner.shape(output) for given, output in self._state.items()}
            runner.swap(self._state)
        return result
