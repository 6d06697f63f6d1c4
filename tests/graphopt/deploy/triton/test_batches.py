"""Streams that compute together get what each gets alone, and nobody waits for one that went away."""

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.deploy.triton.batches import BatchedRunner, Batches
from graphopt.errors import ModelError
from graphopt.generate import Sampler, generate
from graphopt.runners.decoder import Decoder
from graphopt.runners.host import HostRunner, ort_runner
from graphopt.runners.protocol import Array
from tests.support.decoders import with_static_cache, without_cache, write_decoder


class Counted:
    """A runner that notes the batch and the arrays of every call."""

    def __init__(self, runner: HostRunner) -> None:
        self._runner = runner
        self.batches: list[int] = []
        self.feeds: list[dict[str, Array]] = []
        self.results: list[dict[str, Array]] = []
        self.fail = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.batches.append(len(feeds["input_ids"]))
        self.feeds.append(dict(feeds))
        if self.fail:
            self.fail -= 1
            raise ModelError("the model broke")
        self.results.append(self._runner.infer(feeds, outputs))
        return self.results[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return with_static_cache(write_decoder(folder / "growing.onnx"), folder / "static.onnx")


@pytest.fixture
def counted(model: Path) -> Counted:
    return Counted(ort_runner(model, threads=1))


def together(work: Sequence[Any]) -> None:
    """Run callables in threads, and raise what one of them raised."""
    errors: list[BaseException] = []

    def guard(call: Any) -> None:
        try:
            call()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=guard, args=(call,), daemon=True) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a stream waits for ever"
    if errors:
        raise errors[0]


def test_each_stream_gets_what_it_gets_alone(model: Path, counted: Counted) -> None:
    """Five texts of different lengths on three streams, which come and go."""
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9, 7, 9, 3], [2, 3, 8]]
    lengths = [20, 9, 25, 12, 17]
    alone = Decoder(ort_runner(model, threads=1))
    wanted = [
        generate(alone, p, Sampler(1.0, seed=i), max_new_tokens=n).ids
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    got: dict[int, tuple[int, ...]] = {}
    batches = Batches(counted, patience=0.5)  # type: ignore[arg-type]
    jobs = list(range(5))

    def stream() -> None:
        runner = BatchedRunner(batches)
        decoder = Decoder(runner)
        while jobs:
            i = jobs.pop(0)
            got[i] = generate(decoder, prompts[i], Sampler(1.0, seed=i), max_new_tokens=lengths[i]).ids
            runner.end()

    together([stream] * 3)
    assert [got[i] for i in range(5)] == wanted
    assert sum(counted.batches) == sum(lengths), "one row for each token but the last, and one for each prompt"
    decode = [n for n, feeds in zip(counted.batches, counted.feeds, strict=True) if feeds["input_ids"].shape[1] == 1]
    assert max(decode) == 3 and np.mean(decode) > 1.8


def test_logits_are_those_of_one_sequence(model: Path, counted: Counted) -> None:
    batches = Batches(counted, patience=0.5)  # type: ignore[arg-type]
    tokens = [[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]]
    alone = Decoder(ort_runner(model, threads=1))
    got: dict[int, np.ndarray] = {}

    def feed(i: int) -> None:
        decoder = Decoder(BatchedRunner(batches))
        decoder.begin(8)
        got[i] = np.concatenate([decoder.feed([t]) for t in tokens[i]])
        decoder.runner.end()  # type: ignore[attr-defined]

    together([lambda i=i: feed(i) for i in range(3)])
    for i in range(3):
        alone.begin(8)
        np.testing.assert_allclose(got[i], np.concatenate([alone.feed([t]) for t in tokens[i]]), rtol=1e-4, atol=1e-5)


def test_caches_that_stay_together_are_not_copied(counted: Counted) -> None:
    batches = Batches(counted, patience=5.0)  # type: ignore[arg-type]
    runners = [BatchedRunner(batches) for _ in range(3)]
    decoders = [Decoder(r) for r in runners]
    for decoder in decoders:
        decoder.begin(16)
    for _ in range(4):
        together([lambda d=d: d.feed([7]) for d in decoders])
    assert counted.batches == [3] * 4
    assert counted.cache is not None
    for past, present in counted.cache.pairs:
        assert all(after[past] is before[present] for before, after in itertools.pairwise(zipped(counted)))
    runners[1].end()
    together([lambda d=d: d.feed([7]) for d in (decoders[0], decoders[2])])
    past, present = counted.cache.pairs[0]
    # Whoever was in the middle is gone.
    assert counted.batches[-1] == 2
    rows = sorted(map(np.ndarray.tobytes, counted.feeds[-1][past]))
    assert rows != sorted(map(np.ndarray.tobytes, counted.results[-2][present])) and len(rows) == 2


def zipped(counted: Counted) -> list[dict[str, Array]]:
    """What went in and came out, call by call."""
    return [feeds | outputs for feeds, outputs in zip(counted.feeds, counted.results, strict=True)]


def test_streams_that_begin_apart_come_together(counted: Counted) -> None:
    """Each would otherwise wait while the other computes, and compute while the other waits."""
    slow = counted.infer

    def infer(feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        time.sleep(0.05)
        return slow(feeds, outputs)

    counted.infer = infer  # type: ignore[method-assign]
    batches = Batches(counted)  # type: ignore[arg-type]

    def feed(delay: float) -> None:
        decoder = Decoder(BatchedRunner(batches))
        decoder.begin(40)
        time.sleep(delay)
        for _ in range(15):
            decoder.feed([1])
            time.sleep(0.01)  # to choose a token
        decoder.runner.end()  # type: ignore[attr-defined]

    together([lambda: feed(0.0), lambda: feed(0.03)])
    assert counted.batches.count(2) >= 12, counted.batches


def test_shapes_that_differ_do_not_meet(counted: Counted) -> None:
    """A prompt and a step, and caches of two capacities."""
    batches = Batches(counted, patience=0.2)  # type: ignore[arg-type]
    short, long, prompt = (Decoder(BatchedRunner(batches)) for _ in range(3))
    short.begin(8)
    long.begin(200)
    prompt.begin(8)
    together([lambda: short.feed([1]), lambda: long.feed([2]), lambda: prompt.feed([3, 4, 5])])
    assert counted.batches == [1, 1, 1]


def test_one_that_does_not_call_is_not_waited_for(counted: Counted) -> None:
    batches = Batches(counted, patience=0.05)  # type: ignore[arg-type]
    idle, busy = Decoder(BatchedRunner(batches)), Decoder(BatchedRunner(batches))
    idle.begin(8)
    busy.begin(8)
    started = time.monotonic()
    busy.feed([1])
    first = time.monotonic() - started
    idle.runner.end()  # type: ignore[attr-defined]
    started = time.monotonic()
    for _ in range(3):
        busy.feed([1])
    assert first >= 0.05 and counted.batches == [1] * 4
    assert time.monotonic() - started < 3 * 0.05, "who has ended is not waited for at all"


def test_a_failure_reaches_all_of_its_batch_and_nobody_later(counted: Counted) -> None:
    batches = Batches(counted, patience=5.0)  # type: ignore[arg-type]
    decoders = [Decoder(BatchedRunner(batches)) for _ in range(2)]
    for decoder in decoders:
        decoder.begin(8)
    counted.fail = 1
    heard: list[str] = []

    def feed(decoder: Decoder) -> None:
        try:
            decoder.feed([1])
        except ModelError as e:
            heard.append(str(e))

    together([lambda d=d: feed(d) for d in decoders])
    assert heard == ["the model broke"] * 2
    for decoder in decoders:
        decoder.begin(8)
    together([lambda d=d: feed(d) for d in decoders])
    assert len(heard) == 2 and counted.batches == [2, 2]


def test_models_that_take_no_batches(model: Path, tmp_path: Path) -> None:
    assert Batches.fits(ort_runner(model))
    growing = write_decoder(tmp_path / "growing.onnx")
    assert not Batches.fits(ort_runner(growing))
    assert not Batches.fits(ort_runner(without_cache(growing, tmp_path / "none.onnx")))
