"""One sequence through every kind of cache: the logits are those of the whole sequence in one call."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import EngineError, GraphOptError, ModelError
from graphopt.runners import Decoder, open_runner
from graphopt.runners.host import ort_runner
from tests.support import host_engine
from tests.support.decoders import (
    CONFIG,
    growing_profiles,
    static_profiles,
    with_static_cache,
    without_cache,
    write_decoder,
)
from tests.support.language import write_bigram

#: float32 rounding, 2^-24, grown by the longest sum (160 terms) and two layers; logits are O(1).
NOISE = 2e-5
LENGTH = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders")
    without_cache(write_decoder(folder / "growing.onnx"), folder / "none.onnx")
    with_static_cache(folder / "growing.onnx", folder / "static.onnx")
    return folder


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(5).integers(0, CONFIG.vocab_size, LENGTH)


@pytest.fixture(scope="module")
def whole(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits of all tokens, from one call of the model without a cache."""
    with ort_runner(folder / "none.onnx", threads=1) as runner:
        positions = np.arange(LENGTH)[None]
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, LENGTH), np.int64), "position_ids": positions}
        return runner.infer(feeds)["logits"][0]


def split(ids: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(ids, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("kind", ["static", "growing", "none"])
@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (7, 1, 1, 14), (22, 1)])
def test_calls_of_any_length_give_the_logits_of_the_whole(
    folder: Path, ids: np.ndarray, whole: np.ndarray, kind: str, sizes: tuple[int, ...]
) -> None:
    with open_runner(folder / f"{kind}.onnx", threads=1) as runner:
        decoder = Decoder(runner)
        assert decoder.kind == kind
        for _ in range(2):  # a sequence leaves nothing behind
            decoder.begin(LENGTH)
            rows = np.concatenate([decoder.feed(piece, last=False) for piece in split(ids, sizes)])
            np.testing.assert_allclose(rows, whole, atol=NOISE)
            assert decoder.length == LENGTH


def test_the_last_row_alone(folder: Path, ids: np.ndarray, whole: np.ndarray) -> None:
    with open_runner(folder / "growing.onnx", threads=1) as runner:
        decoder = Decoder(runner)
        decoder.begin(LENGTH)
        np.testing.assert_allclose(decoder.feed(ids), whole[-1:], atol=NOISE)


def test_onnx_reference_gives_the_same(folder: Path, ids: np.ndarray, whole: np.ndarray) -> None:
    with open_runner(folder / "growing.onnx", "reference") as runner:
        decoder = Decoder(runner)
        decoder.begin(5)
        np.testing.assert_allclose(decoder.feed(ids[:4], last=False), whole[:4], atol=NOISE)
        np.testing.assert_allclose(decoder.feed(ids[4:5]), whole[4:5], atol=NOISE)


PREFILL_AND_DECODE = growing_profiles(((1, 4, 8), (0, 0, 32)), ((1, 1, 1), (0, 16, 32)))


def test_a_plan_keeps_its_cache_on_the_device(
    folder: Path, tmp_path: Path, ids: np.ndarray, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = host_engine.install(monkeypatch)
    plan = host_engine.write_plan(tmp_path / "growing.plan", folder / "growing.onnx", PREFILL_AND_DECODE)
    with open_runner(plan) as runner:
        decoder = Decoder(runner)
        decoder.begin(LENGTH)
        rows = [decoder.feed(piece, last=True) for piece in split(ids, (20, 1, 1, 1))]
        np.testing.assert_allclose(np.concatenate(rows), whole[-4:], atol=NOISE)
        # 20 tokens go in calls of at most 8; only the last row of each call's logits comes back.
        assert cuda.downloaded == (3 + 3) * 4 * CONFIG.vocab_size
    assert not cuda.memory


def test_a_plan_that_is_not_loaded_says_so(folder: Path, tmp_path: Path) -> None:
    plan = host_engine.write_plan(tmp_path / "growing.plan", folder / "growing.onnx", PREFILL_AND_DECODE)
    with pytest.raises(EngineError, match=r"growing\.plan is not loaded"):
        open_runner(plan).infer({})


def test_a_plan_says_how_long_a_sequence_may_be(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_engine.install(monkeypatch)
    plan = host_engine.write_plan(tmp_path / "growing.plan", folder / "growing.onnx", PREFILL_AND_DECODE)
    with open_runner(plan) as runner:
        decoder = Decoder(runner)
        decoder.begin(33)
        with pytest.raises(GraphOptError, match=r"growing\.plan takes at most 33 tokens, not the 34 of the prompt"):
            decoder.begin(34)


BUCKETS = static_profiles(*(((low, high, high), c) for c in (16, 32, 64) for low, high in ((2, 8), (1, 1))))


def test_a_static_cache_stays_at_one_address_and_decoding_is_replayed(
    folder: Path, tmp_path: Path, ids: np.ndarray, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = host_engine.install(monkeypatch)
    plan = host_engine.write_plan(tmp_path / "static.plan", folder / "static.onnx", BUCKETS)
    with open_runner(plan) as runner:
        decoder = Decoder(runner)
        for graphs in (1, 2):
            decoder.begin(LENGTH)
            assert decoder.capacity == 32
            decoder.feed(ids[:10])
            addresses = sorted(cuda.memory)
            rows = [decoder.feed(piece) for piece in split(ids[10:], (1,) * 13)]
            np.testing.assert_allclose(np.concatenate(rows), whole[-13:], atol=NOISE)
            assert sorted(cuda.memory) == addresses
            assert len(cuda.graphs) == graphs
            assert len(cuda.destroyed) == graphs - 1, "a server makes a graph for each text"
            assert cuda.launches == 12 * graphs  # the first token's run is what the graph is recorded after


@pytest.mark.parametrize(("plugins", "cuda_graph"), [(True, False), (False, True)])
def test_without_a_cuda_graph(
    folder: Path,
    tmp_path: Path,
    ids: np.ndarray,
    whole: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    plugins: bool,
    cuda_graph: bool,
) -> None:
    """Unasked for; or impossible, as function bodies may read the past after they write the present."""
    cuda = host_engine.install(monkeypatch)
    plan = host_engine.write_plan(tmp_path / "static.plan", folder / "static.onnx", BUCKETS, plugins=plugins)
    with open_runner(plan, cuda_graph=cuda_graph) as runner:
        decoder = Decoder(runner)
        decoder.begin(LENGTH)
        rows = np.concatenate([decoder.feed(piece, last=False) for piece in split(ids, (20, 1, 1, 1))])
        np.testing.assert_allclose(rows, whole, atol=NOISE)
    assert not cuda.graphs


@pytest.mark.parametrize(("tokens", "capacity"), [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64)])
def test_the_smallest_bucket_that_holds_the_sequence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, capacity: int
) -> None:
    host_engine.install(monkeypatch)
    plan = host_engine.write_plan(tmp_path / "static.plan", folder / "static.onnx", BUCKETS)
    with open_runner(plan) as runner:
        decoder = Decoder(runner)
        decoder.begin(tokens)
        assert decoder.capacity == capacity
        with pytest.raises(GraphOptError, match=r"static\.plan takes at most 64 tokens, not the 65"):
            decoder.begin(65)


def test_a_static_cache_of_fixed_capacity(folder: Path, tmp_path: Path, ids: np.ndarray, whole: np.ndarray) -> None:
    with_static_cache(folder / "growing.onnx", tmp_path / "fixed.onnx", 9)
    with open_runner(tmp_path / "fixed.onnx", threads=1) as runner:
        decoder = Decoder(runner)
        decoder.begin(3)
        assert decoder.capacity == 9
        np.testing.assert_allclose(decoder.feed(ids[:8], last=False), whole[:8], atol=NOISE)
        with pytest.raises(GraphOptError, match="takes at most 9 tokens, not the 10"):
            decoder.feed(ids[8:10])
        with pytest.raises(GraphOptError, match=r"takes at most 9 tokens, not the 10.* a larger --kv-capacity"):
            decoder.begin(10)


def test_models_that_are_no_decoders_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    table = rng.standard_normal((8, 8)).astype(np.float32)
    with pytest.raises(ModelError, match=r"m\.onnx has no output 'logits'; did you mean 'logit'"):
        Decoder(ort_runner(write_bigram(tmp_path / "m.onnx", table, output="logit")))


def test_a_cache_that_does_not_come_back_is_named(folder: Path) -> None:
    runner = ort_runner(folder / "growing.onnx", threads=1)
    runner.outputs = tuple(o for o in runner.outputs if o != "present.1.key")
    with pytest.raises(ModelError, match=r"no output continues the cache input 'past_key_values\.1\.key'"):
        Decoder(runner)


def test_tokens_before_begin_are_refused(folder: Path) -> None:
    with pytest.raises(GraphOptError, match="begin a sequence"):
        Decoder(ort_runner(folder / "growing.onnx")).feed([1])


def test_nan_logits_are_an_error(tmp_path: Path, rng: np.random.Generator) -> None:
    table = rng.standard_normal((8, 8)).astype(np.float32)
    table[3, 2] = np.nan
    with ort_runner(write_bigram(tmp_path / "m.onnx", table), threads=1) as runner:
        decoder = Decoder(runner)
        decoder.begin(4)
        decoder.feed([1, 2])
        with pytest.raises(ModelError, match="its logits hold NaN"):
            decoder.feed([3])
