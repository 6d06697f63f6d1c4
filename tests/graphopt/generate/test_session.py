"""The same tokens whatever runs the model and however it keeps its cache."""

from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import GraphOptError
from graphopt.generate import Generation, Sampler, generate
from graphopt.runners import Decoder, open_runner
from graphopt.runners.host import ort_runner
from tests.support.decoders import with_static_cache, without_cache, write_decoder
from tests.support.language import write_bigram

PROMPT = [5, 17, 80, 3, 3, 41]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders")
    without_cache(write_decoder(folder / "growing.onnx"), folder / "none.onnx")
    with_static_cache(folder / "growing.onnx", folder / "static.onnx")
    return folder


def run(path: Path, sampler: Sampler, count: int = 24, kind: str | None = None) -> Generation:
    with open_runner(path, kind, threads=1) as runner:
        return generate(Decoder(runner), PROMPT, sampler, max_new_tokens=count)


@pytest.mark.parametrize("sampler", [(0.0,), (0.8, 0.9, 7)])
def test_a_cache_changes_no_token(folder: Path, sampler: tuple[float, ...]) -> None:
    kinds = ("static", "growing", "none")
    static, growing, none = (run(folder / f"{kind}.onnx", Sampler(*sampler)) for kind in kinds)  # type: ignore[arg-type]
    assert static.ids == growing.ids == none.ids
    assert len(growing.ids) == 24
    assert growing.ended == "length"


def test_onnx_reference_makes_the_same_tokens(folder: Path) -> None:
    ours = run(folder / "growing.onnx", Sampler(), 4).ids
    assert run(folder / "growing.onnx", Sampler(), 4, "reference").ids == ours


@pytest.fixture
def counting(tmp_path: Path) -> Decoder:
    """Says n + 1 after n."""
    return Decoder(ort_runner(write_bigram(tmp_path / "m.onnx", np.eye(32, k=1, dtype=np.float32)), threads=1))


def test_end_tokens_end_the_text_and_do_not_belong_to_it(counting: Decoder) -> None:
    result = generate(counting, [3], Sampler(), max_new_tokens=20, end={9})
    assert (result.ids, result.ended, result.decoded) == ((4, 5, 6, 7, 8), "stop", 5)
    assert generate(counting, [3], Sampler(), max_new_tokens=20, end={4}).ids == ()


def test_the_listener_may_stop(counting: Decoder) -> None:
    heard: list[int] = []

    def listen(token: int) -> bool:
        heard.append(token)
        return token == 6

    result = generate(counting, [3], Sampler(), max_new_tokens=20, on_token=listen)
    assert result.ids == tuple(heard) == (4, 5, 6)
    assert result.ended == "stop"


def test_one_token_has_no_rate_of_decoding(counting: Decoder) -> None:
    result = generate(counting, [3, 4], Sampler(), max_new_tokens=1)
    assert (result.ids, result.decode_rate, result.decoded) == ((5,), None, 0)
    assert result.prefill_rate == 2 / result.first_token_seconds
    assert result.to_dict()["ids"] == [5]


def test_nothing_to_do_is_refused(counting: Decoder) -> None:
    with pytest.raises(GraphOptError, match="the prompt has no tokens"):
        generate(counting, [], Sampler(), max_new_tokens=3)
    with pytest.raises(GraphOptError, match="at least 1 token"):
        generate(counting, [1], Sampler(), max_new_tokens=0)
