"""How many threads or processes quantize at a time: what ``--jobs`` says, `OMP_NUM_THREADS`, or the processors.

And how far they run ahead of who waits for them.
"""

__all__ = ["MOST", "ahead", "at_most", "count"]

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

#: At most, where nobody asks for a number: each job holds a part of a weight, and memory is to stay bounded on hosts of
#: many processors.
MOST = 16

_asked: ContextVar[int | None] = ContextVar("jobs", default=None)


def ahead(started: Iterable[T], jobs: int) -> Iterator[T]:
    """Yield what ``started`` gives, in order, each when as many more as there are ``jobs`` have been taken from it.

    One more than jobs are under way at most: the next is ready when one ends, and no more results than that wait.
    """
    waiting: deque[T] = deque()
    for item in started:
        waiting.append(item)
        if len(waiting) > jobs:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


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
