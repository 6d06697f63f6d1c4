"""Requests for text on a fixed number of decoders: each thread has one, and serves one request at a time."""

__all__ = ["Job", "Part", "Streams"]

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from graphopt import log
from graphopt.deploy.triton.request import GenerateRequest
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.errors import DeployError, GraphOptError
from graphopt.generate import Sampler, TextStream, generate
from graphopt.runners.decoder import Decoder

_logger = log.get(__name__)


class Words(Protocol):
    """What is needed of a tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to tokens."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Tokens to text."""


@dataclass(frozen=True)
class Part:
    """One response: a piece of text, why it ended (empty if more comes), and tokens counted so far."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Job:
    """A request on its way.

    Attributes:
        request: what is asked for.
        send: takes the responses, from another thread.
        finish: is called once after the last one: with the error, if there was one.
        cancelled: whether nobody listens any more.
        prompt: tokens of the prompt, once it was taken.
    """

    request: GenerateRequest
    send: Callable[[Part], None]
    finish: Callable[[str | None], None]
    cancelled: Callable[[], bool]
    prompt: list[int] = field(default_factory=list)


class Streams:
    """Decoders at work.

    Args:
        decoders: one for each stream, of entered runners.
        words: the tokenizer.
        settings: holds the limits.
        ended: is called by a stream after each of its texts, to let go of what the text held.
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        words: Words,
        settings: GenerateSettings,
        ended: Callable[[Decoder], None] = lambda decoder: None,
    ) -> None:
        self._words, self._settings, self._ended = words, settings, ended
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._room = len(decoders) + settings.waiting
        self._threads = [threading.Thread(target=self._work, args=(d,), daemon=True) for d in decoders]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Take a job; it is answered from another thread.

        Raises:
            DeployError: its prompt has no tokens or too many, the queue is full, or the server stops.
        """
        job.prompt = self._words.encode(job.request.text_input)
        most = self._settings.max_prompt_tokens
        if not 1 <= len(job.prompt) <= most:
            raise DeployError(f"the prompt has {len(job.prompt)} tokens; 1 to {most} are taken here")
        with self._lock:
            if self._closing.is_set():
                raise DeployError("the server is stopping")
            if self._room == 0:
                raise DeployError(f"all streams are busy and {self._settings.waiting} requests wait; try again later")
            self._room -= 1
        self._jobs.put(job)

    def close(self, timeout: float = 10.0) -> None:
        """Stop after the tokens in work; jobs that are left end with an error."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _work(self, decoder: Decoder) -> None:
        while (job := self._jobs.get()) is not None:
            error: str | None = None
            try:
                if self._closing.is_set():
                    error = "the server is stopping"
                elif not job.cancelled():
                    self._serve(decoder, job)
            except GraphOptError as e:
                error = str(e)
            except Exception as e:  # one request must not end the stream for those after it
                _logger.exception("a request failed")
                error = f"internal error: {type(e).__name__}: {e}"
            finally:
                with self._lock:
                    self._room += 1
                job.finish(error)

    def _serve(self, decoder: Decoder, job: Job) -> None:
        request, count = job.request, len(job.prompt)
        text = TextStream(lambda ids: self._words.decode(ids, skip_special_tokens=True), request.stop)
        made = 0

        def on_token(token: int) -> bool:
            nonlocal made
            made += 1
            piece = text.push(token)
            if piece and request.stream:
                job.send(Part(piece, "", count, made))
            return text.stopped is not None or self._closing.is_set() or job.cancelled()

        try:
            result = generate(
                decoder,
                job.prompt,
                Sampler(request.temperature, request.top_p, request.seed),
                max_new_tokens=request.max_tokens,
                end=() if request.ignore_end else self._words.end_ids,
                on_token=on_token,
            )
        finally:
            self._ended(decoder)
        if self._closing.is_set():
            raise DeployError("the server is stopping")
        rest = text.finish()
        if not job.cancelled():
            shown = rest if request.stream else text.text
            job.send(Part(shown, result.ended, count, len(result.ids)))
