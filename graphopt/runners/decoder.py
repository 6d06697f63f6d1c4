"""A causal language model behind a runner: tokens in, logits out, whichever cache the model has.

static   past and present at one address, of a fixed capacity (metadata ``graphopt.kv_cache``)
growing  present = past ++ new, as exporters write it: outputs become inputs
none     every call computes all tokens again
"""

__all__ = ["LOGITS", "Decoder"]

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from graphopt.calibrate.feeds import TOKENS, Input, from_tokens
from graphopt.errors import GraphOptError, ModelError, nearest
from graphopt.ir import kv_cache
from graphopt.runners.protocol import Array, Loop, Runner
from graphopt.runners.spans import UNBOUNDED, longest_call, spans_of

LOGITS = "logits"
_PAST = re.compile(r"past(_key_values|_key_value)?")


class Decoder:
    """One sequence of a language model.

    Args:
        runner: entered by the caller, before the first `feed`.

    Attributes:
        kind: "static", "growing" or "none".
        length: tokens seen since `begin`.
        capacity: rows of the static cache in use; None for other kinds.

    Raises:
        ModelError: the model has no token input, no logits, or a cache that cannot be followed.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        if LOGITS not in runner.outputs:
            raise ModelError(f"{runner.path} has no output '{LOGITS}'{nearest(LOGITS, runner.outputs)}")
        if not any(i.name == TOKENS for i in runner.inputs):
            known = nearest(TOKENS, [i.name for i in runner.inputs])
            raise ModelError(f"{runner.path} has no input '{TOKENS}'{known}; it is no language model")
        self._state = dict(runner.cache.pairs) if runner.cache else _growing_pairs(runner)
        self.kind: Literal["static", "growing", "none"] = (
            "static" if runner.cache else "growing" if self._state else "none"
        )
        self._free = [i for i in runner.inputs if i.name not in self._state]
        self._spans = spans_of(runner, next(iter(self._state), None))
        self.capacity: int | None = None
        self.length = 0
        self._loop: Loop | None = None
        self._seen = np.zeros(0, np.int64)

    def begin(self, tokens: int) -> None:
        """Forget the sequence, and make room for one of ``tokens`` tokens.

        Raises:
            GraphOptError: the model, or the profiles of its plan, do not take that many.
        """
        self.length, self._seen = 0, np.zeros(0, np.int64)
        self.capacity = self.room(tokens)
        size = self.capacity or 0
        shapes = {i.name: _sizes(i, size) for i in self.runner.inputs if i.name in self._state}
        self._loop = self.runner.loop(self._state, shapes, in_place=self.kind == "static")

    def room(self, tokens: int) -> int | None:
        """Return the rows of a static cache that holds ``tokens`` tokens, None for other kinds.

        Raises:
            GraphOptError: the model, or the profiles of its plan, do not take that many.
        """
        if self.kind == "static":
            return self._capacity(tokens)
        if tokens > (limit := self._limit()):
            raise self._too_long(tokens, limit)
        return None

    def feed(self, ids: Sequence[int] | np.ndarray, *, last: bool = True) -> Array:
        """Append tokens to the sequence, in as many calls as the model needs for them.

        Args:
            ids: at least one token.
            last: return the logits of the last token only.

        Returns:
            (1, V) or, without ``last``, (len(ids), V) float32.

        Raises:
            GraphOptError: the model does not take them, or its logits are NaN.
        """
        if self._loop is None:
            raise GraphOptError(f"begin a sequence of {self.runner.path} before feeding it tokens")
        tokens = np.asarray(ids, np.int64)
        rows = [self._call(self._loop, piece, last=last) for piece in self._pieces(tokens)]
        logits = rows[-1] if last else np.concatenate(rows)
        if np.isnan(logits).any():
            raise ModelError(
                f"{self.runner.path}: its logits hold NaN; find the layer with 'graphopt compare --per-layer'"
            )
        return logits

    def _pieces(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        if self.kind == "none":
            yield tokens
            return
        if self.capacity is not None and self.length + len(tokens) > self.capacity:
            raise self._too_long(self.length + len(tokens), self.capacity)
        done = 0
        while done < len(tokens):
            past = self.capacity if self.capacity is not None else self.length
            length = longest_call(self._spans, past, len(tokens) - done)
            if length is None:
                raise self._too_long(self.length + len(tokens) - done, self.length)
            yield tokens[done : done + length]
            done += length

    def _call(self, loop: Loop, tokens: np.ndarray, *, last: bool) -> Array:
        past = self.length
        if self.kind == "none":
            self._seen = tokens = np.concatenate([self._seen, tokens])
            past = 0
        feeds = from_tokens(self._free, tokens[None], past=past)
        new = past + len(tokens) - self.length
        rows = loop.call(feeds, LOGITS, last=last)
        if rows.ndim != 2:
            raise ModelError(f"{self.runner.path}: '{LOGITS}' has rank {rows.ndim + 1}, not [1, tokens, vocabulary]")
        if len(rows) < (1 if last else new):
            raise ModelError(f"{self.runner.path}: '{LOGITS}' has {len(rows)} rows for {new} tokens; export all")
        self.length += new
        return np.asarray(rows[-new:], np.float32)

    def _capacity(self, tokens: int) -> int:
        """The smallest capacity among those the model takes that holds ``tokens``."""
        sizes = sorted({size for span in self._spans for size in span.pasts})
        fitting = [s for s in sizes if tokens <= s < UNBOUNDED and longest_call(self._spans, s, 1) is not None]
        if fitting:
            return fitting[0]
        if UNBOUNDED in sizes:
            return kv_cache.rows_for(tokens)
        raise self._too_long(tokens, max(sizes, default=0))

    def _limit(self) -> int:
        """The longest sequence that can be decoded token by token."""
        if self.kind == "none":
            return max(span.seq[1] for span in self._spans)
        limits = (min(span.past[1] + 1, span.total[1]) for span in self._spans if span.seq[0] == 1)
        return max(limits, default=0)

    def _too_long(self, tokens: int, limit: int) -> GraphOptError:
        hint = "build the plan with larger shapes" if self.runner.profiles else "export it for longer sequences"
        if self.runner.cache is not None and self.runner.cache.capacity is not None:
            hint = "optimize the model with a larger --kv-capacity"
        return GraphOptError(
            f"{self.runner.path} takes at most {limit} tokens, not the {tokens} of the prompt and what follows it; "
            f"ask for fewer, or {hint}"
        )


def _growing_pairs(runner: Runner) -> dict[str, str]:
    """Inputs that hold the past -> the outputs that hold past and present."""
    pasts = [i.name for i in runner.inputs if i.name.startswith("past")]
    pairs = {}
    for past in pasts:
        names = {_PAST.sub(kind, past, count=1) for kind in ("present", "present_key_values", "present_key_value")}
        found = [output for output in runner.outputs if output in names]
        if len(found) != 1:
            raise ModelError(
                f"{runner.path}: no output continues the cache input '{past}' ('{sorted(names)[0]}' would); "
                "export the model with its present keys and values"
            )
        pairs[past] = found[0]
    return pairs


def _sizes(cache: Input, rows: int) -> tuple[int, ...]:
    """Shape of a cache input of one sequence with ``rows`` rows."""
    free: list[Any] = [1 if axis == 0 else rows for axis in range(len(cache.shape))]
    return tuple(d if isinstance(d, int) else f for d, f in zip(cache.shape, free, strict=True))
