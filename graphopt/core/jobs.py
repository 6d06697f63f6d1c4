"""How many threads or processes quantize at a time: what ``--jobs`` says, `OMP_NUM_THREADS`, or the processors."""

__all__ = ["MOST", "at_most", "count"]

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: At most, where nobody asks for a number: each job holds a part of a weight, and memory is to stay bounded on hosts of
#: many processors.
MOST = 16

_asked: ContextVar[int | None] = ContextVar("jobs", default=None)


def count() -> int:
    """Jobs to work with, at least 1. No result depends on it."""
    asked = _asked.get()
    if asked is not None:
        return asked
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if told.isdecimal() and int(told) > 0:
        return min(int(told), MOST)
    # What a job may use can be less than the host has, where the system says so.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MOST)


@contextmanager
def at_most(jobs: int | None) -> Iterator[None]:
    """Make `count` say ``jobs`` inside; None leaves the choice to it."""
    token = _asked.set(jobs)
    try:
        yield
    finally:
        _asked.reset(token)
