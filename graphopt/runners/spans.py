"""Which numbers of tokens a model takes in one call, and with how many in its cache."""

__all__ = ["UNBOUNDED", "Span", "longest_call", "spans_of"]

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.calibrate.feeds import TOKENS
from graphopt.runners.protocol import Runner

#: Stands for "any size".
UNBOUNDED = 1 << 62
_MASK = "attention_mask"


@dataclass(frozen=True)
class Span:
    """What one profile takes, each as (least, most).

    Attributes:
        seq: new tokens.
        past: rows of the cache, (0, UNBOUNDED) without one.
        total: columns of the attention mask.
        pasts: rows of the cache that the profile names: its smallest, usual and largest.
    """

    seq: tuple[int, int]
    past: tuple[int, int]
    total: tuple[int, int]
    pasts: tuple[int, ...]


def spans_of(runner: Runner, past: str | None) -> list[Span]:
    """Return the span of every profile of ``runner``, or that of its declared shapes if it has none.

    Args:
        runner: need not be entered.
        past: name of one input of its cache, whose axis 2 counts rows; None without a cache.
    """
    declared = {i.name: i.shape for i in runner.inputs}

    def sizes(name: str, axis: int, least: int) -> tuple[int, ...]:
        size = declared[name][axis] if name in declared and len(declared[name]) > axis else None
        return (size, size, size) if isinstance(size, int) else (least, UNBOUNDED, UNBOUNDED)

    plain = {TOKENS: sizes(TOKENS, 1, 1), _MASK: sizes(_MASK, 1, 0), "past": sizes(past or "", 2, 0)}
    spans = []
    for ranges in [p.ranges for p in runner.profiles] or [{}]:
        found = dict(plain)
        for key, name, axis in ((TOKENS, TOKENS, 1), (_MASK, _MASK, 1), ("past", past, 2)):
            if name in ranges:
                r = ranges[name]
                found[key] = r.min[axis], r.opt[axis], r.max[axis]
        spans.append(Span(_ends(found[TOKENS]), _ends(found["past"]), _ends(found[_MASK]), found["past"]))
    return spans


def _ends(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes[0], sizes[-1]


def longest_call(spans: Sequence[Span], past: int, left: int) -> int | None:
    """Return the most tokens, at most ``left``, that one call takes with ``past`` rows in the cache; None for none."""
    lengths = []
    for span in spans:
        if span.past[0] <= past <= span.past[1]:
            most = min(left, span.seq[1], span.total[1] - past)
            if most >= max(1, span.seq[0], span.total[0] - past):
                lengths.append(most)
    return max(lengths, default=None)
