"""Jobs on decoders that recite a loop of letters, without a server."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import decoders

from graphopt.deploy.triton.request import GenerateRequest
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.deploy.triton.streams import Job, Part, Streams
from graphopt.errors import DeployError, ModelError
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners import Decoder
from graphopt.runners.host import ort_runner
from tests.support.language import bytes_tokenizer, write_bigram

SETTINGS = GenerateSettings("ort", streams=1, waiting=1, max_prompt_tokens=8, max_new_tokens=400)


@pytest.fixture
def words() -> Tokenizer:
    backend = bytes_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


@pytest.fixture
def decoder(words: Tokenizer, tmp_path: Path) -> Decoder:
    table = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    ids = words.encode("abcdef.")
    for one, following in zip(ids, [*ids[1:], ids[0]], strict=True):
        table[one, following] = 20
    return Decoder(ort_runner(write_bigram(tmp_path / "m.onnx", table), threads=1))


@pytest.fixture
def streams(decoder: Decoder, words: Tokenizer) -> Iterator[Streams]:
    opened = Streams([decoder], words, SETTINGS)
    yield opened
    opened.close()


class Client:
    """Collects what a job sends."""

    def __init__(self, hold: threading.Event | None = None, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.parts: list[Part] = []
        self.ends: queue.Queue[str | None] = queue.Queue()
        self._hold, self._cancelled = hold, cancelled

    def job(self, **fields: Any) -> Job:
        return Job(GenerateRequest(**{"text_input": "ab", "max_tokens": 9, **fields}), self.send, self.ends.put,
                   self._cancelled)  # fmt: skip

    def send(self, part: Part) -> None:
        self.parts.append(part)
        if self._hold is not None:
            self._hold.wait(30)


def test_one_answer_or_pieces(streams: Streams) -> None:
    whole, pieces = Client(), Client()
    streams.submit(whole.job())
    assert whole.ends.get(timeout=30) is None
    assert whole.parts == [Part("cdef.abcd", "length", 2, 9)]
    streams.submit(pieces.job(stream=True, stop=(".a",)))
    assert pieces.ends.get(timeout=30) is None
    assert "".join(p.text for p in pieces.parts) == "cdef"
    assert [p.finish_reason for p in pieces.parts][-1] == "stop"


def test_no_more_than_the_queue_holds(streams: Streams) -> None:
    go = threading.Event()
    running, waiting, refused = Client(go), Client(), Client()
    streams.submit(running.job(stream=True))
    streams.submit(waiting.job())
    with pytest.raises(DeployError, match="all streams are busy and 1 requests wait"):
        streams.submit(refused.job())
    go.set()
    assert running.ends.get(timeout=30) is None
    assert waiting.ends.get(timeout=30) is None
    streams.submit(refused.job())
    assert refused.ends.get(timeout=30) is None


def test_nobody_listens(streams: Streams) -> None:
    client = Client(cancelled=lambda: len(client.parts) >= 2)
    streams.submit(client.job(stream=True, max_tokens=400))
    assert client.ends.get(timeout=30) is None
    assert len(client.parts) == 2


@pytest.mark.parametrize(("error", "told"), [(ModelError("NaN"), "NaN"), (KeyError("x"), "internal error: KeyError")])
def test_a_failure_ends_its_request_alone(
    streams: Streams, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    client = Client()
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "feed", fail)
        streams.submit(client.job())
        assert told in str(client.ends.get(timeout=30))
    streams.submit(client.job())
    assert client.ends.get(timeout=30) is None


def test_what_is_left_ends_with_the_server(streams: Streams) -> None:
    go = threading.Event()
    running, waiting = Client(go), Client()
    streams.submit(running.job(stream=True, max_tokens=400))
    streams.submit(waiting.job())
    closing = threading.Thread(target=streams.close)
    closing.start()
    go.set()
    closing.join(30)
    assert not closing.is_alive()
    assert {running.ends.get(timeout=1), waiting.ends.get(timeout=1)} == {"the server is stopping"}
    with pytest.raises(DeployError, match="the server is stopping"):
        streams.submit(Client().job())
