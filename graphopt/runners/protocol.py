"""What a runner is: named arrays in, named arrays out, and a loop whose state stays where the model runs."""

__all__ = ["Array", "Loop", "Runner"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from graphopt.calibrate.feeds import Input
from graphopt.engine.profiles import Profile, Shape
from graphopt.ir.kv_cache import KvCache

Array = npt.NDArray[Any]


class Loop(Protocol):
    """Calls of a model in which some outputs of one call are inputs of the next."""

    def call(self, feeds: Mapping[str, Array], wanted: str, *, last: bool) -> Array:
        """Run the model once and carry its state over to the next call.

        Args:
            feeds: every input but the state.
            wanted: name of an output (1, S, ...).
            last: whether only its last row is needed.

        Returns:
            (S, ...), or (1, ...) if ``last``.
        """


class Runner(Protocol):
    """A model that is ready to run; a context manager.

    Attributes:
        path: the file.
        inputs: what it takes.
        outputs: names of what it gives.
        cache: of a decoder whose cache is updated in place; None for other models.
        scheme: the recipe that the weights went through; None for a model whose weights are untouched.
        profiles: ranges of shapes that it takes; empty where nothing but ``inputs`` bounds them.
        note: what it was opened as, for people: ``TensorRT 8.6.0``.
    """

    path: Path
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    cache: KvCache | None
    scheme: str | None
    profiles: tuple[Profile, ...]
    note: str

    def __enter__(self) -> "Runner":
        """Load the model."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs for one array per input: those named, or all.

        Raises:
            GraphOptError: the feeds do not fit the model, or it failed.
        """

    def loop(self, state: Mapping[str, str], shapes: Mapping[str, Shape], *, in_place: bool) -> Loop:
        """Start a loop; it ends the one before it.

        Args:
            state: input -> the output that it is in the next call.
            shapes: of the inputs of ``state`` in the first call, whose values are zero.
            in_place: whether each of these inputs and its output have one shape and may have one address.
        """
