"""TensorRT's log: forwarded to ours, and its errors kept for our own error messages."""

__all__ = ["Messages", "Record", "brief"]

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from graphopt import log

_log = log.get(__name__)


@dataclass(eq=False)
class Record:
    """Errors and warnings that TensorRT logged while a record was open."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reason(self) -> str:
        """The first error as one readable phrase; the later ones follow from it."""
        return brief(self.errors[0]) if self.errors else "it gave no reason"


class Messages:
    """Where TensorRT's logger puts its messages.

    TensorRT keeps the first logger of a process for everything that is not a builder's or runtime's own, such as the
    plugin registry; so there is one receiver per process, and whoever wants to know what was said opens a record.
    """

    def __init__(self) -> None:
        self._open: list[Record] = []

    @contextmanager
    def record(self) -> Iterator[Record]:
        """Collect what is logged until the block ends."""
        record = Record()
        self._open.append(record)
        try:
            yield record
        finally:
            self._open.remove(record)

    def receive(self, severity: str, text: str) -> None:
        """Take one message; ``severity`` is the name of an ILogger.Severity."""
        _log.debug("TensorRT %s: %s", severity.lower(), text)
        # Every error on a machine without a GPU is followed by this one, which says nothing about its cause.
        if "catchCudaError" in text:
            return
        for record in tuple(self._open):  # threads open and close theirs meanwhile
            if severity in ("ERROR", "INTERNAL_ERROR"):
                record.errors.append(text)
            elif severity == "WARNING":
                record.warnings.append(text)


def brief(text: str) -> str:
    """Cut a TensorRT message down to its sentence.

    >>> brief("IBuilder::x: Error Code 4: API Usage Error (k: must be 3. In validate at /_src/a.cpp:12)")
    'k: must be 3'
    """
    if match := re.search(r"Error Code \d+: [^(]*\((.*?)\s+In \S+ at \S+\)", text, re.DOTALL):
        text = match.group(1)
    return " ".join(text.split()).strip(" .")
