"""Streams that compute together: calls of several sequences become one call of a model.

A decoder's step reads all weights for one token; for four sequences it reads them once as well. Streams stay what they
are, threads with a sequence each: what they call waits until the others that are at work call too, or for a while,
and goes to the model as one batch. Calls of one shape fit into one batch: one token, a cache of one capacity.

The while begins when the batch before has ended, since those who were in it choose their next tokens then. It is a
share of what that batch took: who is late for a batch waits for all of it.
"""

__all__ = ["BatchedRunner", "Batches"]

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from graphopt.engine.profiles import Shape
from graphopt.runners.protocol import Array, Runner

#: Seconds that a call waits at least for those of other streams, and as a share of what a batch takes.
_PATIENCE, _SHARE = 0.005, 0.5


@dataclass(eq=False)
class _Sequence:
    """The state of one stream: row ``row`` of every array in ``state``, which may belong to several."""

    pairs: Mapping[str, str]
    state: dict[str, Array]
    row: int = 0


@dataclass(eq=False)
class _Call:
    sequence: _Sequence
    feeds: Mapping[str, Array]
    wanted: str
    since: float = field(default_factory=time.monotonic)
    rows: Array | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return self.rows is not None or self.error is not None

    @property
    def shape(self) -> tuple[object, ...]:
        """What calls of one batch have in common."""
        feeds = tuple((name, a.shape[1:]) for name, a in sorted(self.feeds.items()))
        state = tuple((name, a.shape[1:]) for name, a in sorted(self.sequence.state.items()))
        return self.wanted, feeds, state


class Batches:
    """Calls of a model that wait for each other.

    Args:
        runner: of the model, entered; every input has a free batch as its first axis.
        patience: seconds that a call waits at least for those of other streams, unless they are there.
    """

    def __init__(self, runner: Runner, patience: float = _PATIENCE) -> None:
        self.runner, self._patience = runner, patience
        self._took = self._ended = 0.0
        self._changed = threading.Condition()
        self._open: set[_Sequence] = set()
        self._waiting: list[_Call] = []
        self._running = False

    @staticmethod
    def fits(runner: Runner) -> bool:
        """Whether ``runner`` takes batches of sequences: its cache is updated in place, its first axes are free."""
        return runner.cache is not None and not any(isinstance(i.shape[0], int) for i in runner.inputs)

    def begin(self, sequence: _Sequence) -> None:
        """From now on, other calls wait for those of ``sequence``."""
        with self._changed:
            self._open.add(sequence)

    def end(self, sequence: _Sequence) -> None:
        """Nobody waits for ``sequence`` any more."""
        with self._changed:
            self._open.discard(sequence)
            self._changed.notify_all()

    def run(self, call: _Call) -> Array:
        """Compute ``call``, with others that wait; return its rows (S, ...)."""
        with self._changed:
            self._waiting.append(call)
            self._changed.notify_all()
        while True:
            with self._changed:
                while not call.done and not self._is_time():
                    self._changed.wait(self._remaining())
                if call.done:
                    break
                batch = self._take()
            started = time.monotonic()
            self._compute(batch)
            with self._changed:
                self._ended = time.monotonic()
                self._took = self._ended - started
                self._running = False
                self._changed.notify_all()
        if call.error is not None:
            raise call.error
        assert call.rows is not None
        return call.rows

    def _is_time(self) -> bool:
        """Whether the thread that asks shall compute what waits."""
        remaining = self._remaining()
        return remaining is not None and (len(self._waiting) >= len(self._open) or remaining <= 0)

    def _remaining(self) -> float | None:
        """Seconds until the call that has waited longest has waited enough; None while another thread computes."""
        if self._running:
            return None
        begun = max(self._ended, min(c.since for c in self._waiting))
        return begun + max(self._patience, _SHARE * self._took) - time.monotonic()

    def _take(self) -> list[_Call]:
        """The call that has waited longest, and all of its shape, in the order of the batch that they were in last."""
        shape = self._waiting[0].shape
        batch = sorted((c for c in self._waiting if c.shape == shape), key=lambda c: c.sequence.row)
        self._waiting = [c for c in self._waiting if c.shape != shape]
        self._running = True
        return batch

    def _compute(self, batch: Sequence[_Call]) -> None:
        try:
            first, sequences = batch[0], [c.sequence for c in batch]
            feeds = {name: np.concatenate([c.feeds[name] for c in batch]) for name in first.feeds}
            feeds |= {name: _stacked(sequences, name) for name in first.sequence.state}
            outputs = self.runner.infer(feeds, [first.wanted, *first.sequence.pairs.values()])
            state = {past: outputs[present] for past, present in first.sequence.pairs.items()}
            for row, call in enumerate(batch):
                call.sequence.state, call.sequence.row = state, row
                call.rows = outputs[first.wanted][row]
        except Exception as e:  # every stream of the batch hears of it
            for call in batch:
                call.error = e


def _stacked(sequences: Sequence[_Sequence], name: str) -> Array:
    """The state ``name`` of all sequences, without a copy where they are as the last batch left them."""
    array = sequences[0].state[name]
    together = all(s.state[name] is array and s.row == row for row, s in enumerate(sequences))
    if together and len(array) == len(sequences):
        return array
    return np.concatenate([s.state[name][s.row : s.row + 1] for s in sequences])


class BatchedRunner:
    """The model as one stream sees it; see `graphopt.runners.protocol.Runner`.

    Args:
        batches: shared by the streams.
    """

    def __init__(self, batches: Batches) -> None:
        runner = batches.runner
        self.path, self.inputs, self.outputs, self.cache = runner.path, runner.inputs, runner.outputs, runner.cache
        self.scheme, self.profiles, self.note = runner.scheme, runner.profiles, runner.note
        self._batches = batches
        self._sequence: _Sequence | None = None

    def __enter__(self) -> "BatchedRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See the protocol."""
        return self._batches.runner.infer(feeds, outputs)

    def loop(self, state: Mapping[str, str], shapes: Mapping[str, Shape], *, in_place: bool) -> "BatchedRunner":
        """See the protocol; the loop is the runner itself, which has one at a time."""
        self.end()
        types = {i.name: i.dtype for i in self.inputs}
        empty = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
        self._sequence = _Sequence(dict(state), empty)
        self._batches.begin(self._sequence)
        return self

    def call(self, feeds: Mapping[str, Array], wanted: str, *, last: bool) -> Array:
        """See the protocol of loops."""
        assert self._sequence is not None, "call follows loop"
        rows = self._batches.run(_Call(self._sequence, feeds, wanted))
        return rows[-1:] if last else rows

    def end(self) -> None:
        """End the sequence that is open: other streams do not wait for it."""
        if self._sequence is not None:
            self._batches.end(self._sequence)
            self._sequence = None
