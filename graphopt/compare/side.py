"""One of two models that are compared: its file, and what runs it."""

__all__ = ["Side"]

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from graphopt import ir
from graphopt.calibrate.feeds import TOKENS, Feed, Input, from_tokens
from graphopt.errors import ModelError, nearest
from graphopt.runners import Runner, open_runner, running


@dataclass(frozen=True)
class Side:
    """A model to run for a comparison.

    Attributes:
        path: ONNX file or plan.
        runner: a key of `graphopt.runners.KINDS`; None for the one of the file's ending. TensorRT runs an ONNX file
            through a plan that is built for the feeds.
        plugins: plugin library for TensorRT; None to look for it.
        optimize: whether ONNX Runtime may rewrite the graph; off shows differences of the files alone.
        threads: for ONNX Runtime (default: all cores).
    """

    path: Path
    runner: str | None = None
    plugins: Path | None = None
    optimize: bool = True
    threads: int | None = None

    def running(self, feeds: Sequence[Feed], path: Path | None = None) -> AbstractContextManager[Runner]:
        """Return the runner of this model, or of another file that is run in the same way; enter it to load it."""
        return running(
            path or self.path, self.runner, feeds, plugins=self.plugins, optimize=self.optimize, threads=self.threads
        )

    @property
    def is_plan(self) -> bool:
        """Whether the file is a plan, whose layers cannot be looked into."""
        return self.path.suffix == ".plan"

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What the model takes, read from the file or its manifest."""
        return open_runner(self.path).inputs

    @cached_property
    def model(self) -> ir.Model:
        """The ONNX file."""
        return ir.load(self.path)

    def feeds_like(self, reference: "Side", feeds: Sequence[Feed]) -> Sequence[Feed]:
        """Return ``feeds`` of ``reference`` for this model: the same, or made anew from their tokens.

        Two decoders that keep their caches differently have different inputs, all of which follow from the tokens.

        Raises:
            ModelError: the inputs differ otherwise.
        """
        names, expected = ([i.name for i in side.inputs] for side in (self, reference))
        shapes, theirs = ({i.name: i.shape for i in side.inputs if i.role} for side in (self, reference))
        if sorted(names) == sorted(expected) and shapes.keys() == theirs.keys():
            return feeds
        if TOKENS in names and TOKENS in expected:
            return [from_tokens(self.inputs, feed[TOKENS]) for feed in feeds]
        for name in expected:
            if name not in names:
                raise ModelError(f"{self.path} has no input '{name}', which {reference.path} has{nearest(name, names)}")
        extra = next(name for name in names if name not in expected)
        raise ModelError(f"{self.path} has an input '{extra}', which {reference.path} lacks{nearest(extra, expected)}")
