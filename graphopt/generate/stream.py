"""Tokens to text while they come: whole characters only, and nothing of a stop string."""

__all__ = ["TextStream"]

from collections.abc import Callable, Sequence

#: What a decoder puts in place of bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"
#: Bytes of the longest character, and so the most tokens that one may be spread over.
_LONGEST = 4


class TextStream:
    """Turns token ids into pieces of text that add up to the text of all of them.

    A token may hold a part of a character, and what it looks like may depend on the one before it, so each piece is the
    difference of two texts of a short window. Text that may be the beginning of a stop string is held back.

    Args:
        decode: ids -> text.
        stop: strings that end the text; they do not belong to it.

    Attributes:
        text: what has been given out so far.
        stopped: the stop string that was met, or None.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, [s for s in stop if s]
        self._ids: list[int] = []
        self._window = self._read = 0
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    def push(self, token: int) -> str:
        """Add a token and return the text that has become certain; nothing after a stop string."""
        self._ids.append(token)
        return self._release(self._fresh(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back, after the last token."""
        return self._release(self._fresh(final=True), final=True)

    def _fresh(self, *, final: bool) -> str:
        """Text of the tokens that were not read yet, up to the last whole character."""
        before = self._decode(self._ids[self._window : self._read])
        now, end = self._decode(self._ids[self._window :]), len(self._ids)
        if now.endswith(_REPLACEMENT) and not final:
            now, end = self._certain(now)
        if len(now) <= len(before):
            return ""
        self._window, self._read = self._read, end
        return now[len(before) :]

    def _certain(self, text: str) -> tuple[str, int]:
        """The part of ``text``, whose end is no character or not yet one, that no further token changes; its end."""
        last = len(self._ids)
        for end in range(max(last - _LONGEST + 1, self._read), last):
            part = self._decode(self._ids[self._window : end])
            if end > self._read and last - self._read >= _LONGEST and text.startswith(part):
                return part, end
        return "", self._read

    def _release(self, fresh: str, *, final: bool) -> str:
        if self.stopped is not None:
            return ""
        pending = self._held + fresh
        found = [(pending.find(s), s) for s in self._stop if s in pending]
        if found:
            end, self.stopped = min(found)
        else:
            end = len(pending) - (0 if final else self._possible(pending))
        self._held = "" if found else pending[end:]
        self.text += pending[:end]
        return pending[:end]

    def _possible(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        lengths = (n for s in self._stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n]))
        return max(lengths, default=0)
