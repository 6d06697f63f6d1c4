from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from graphopt.errors import ModelError, OutputError
from graphopt.models.gguf_weights import GgufWeights
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.tokenizer import Tokenizer
from graphopt.models.weights import RandomWeights

SPECIAL = ["<|end|>", "<|user|>"]
PIECES = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe", "12", "<think>"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TYPES = [3, 3] + [1] * (len(PIECES) - 3) + [4]
MakeGguf = Callable[..., GgufWeights]


@pytest.fixture
def make_gguf(tiny: LlamaConfig, write_gguf: Callable[..., Path]) -> MakeGguf:
    """Write a GGUF file with a tokenizer of 256 bytes, four merges and three added tokens."""

    def make(model: str = "gpt2", pre: str = "smollm", merges: list[str] = MERGES, bos: bool = False) -> GgufWeights:
        def edit(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model(model)
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(PIECES)
            writer.add_token_types(TYPES)
            writer.add_token_merges(merges)
            writer.add_bos_token_id(0)
            writer.add_add_bos_token(bos)

        return GgufWeights(write_gguf(tiny, RandomWeights(tiny).tensor, edit=edit))

    return make


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [PIECES[i] for i in tokenizer.encode(text)]


def test_merges_and_added_tokens(make_gguf: MakeGguf) -> None:
    tokenizer = Tokenizer.from_gguf(make_gguf())
    assert tokenizer.vocab_size == len(PIECES)
    assert pieces(tokenizer, "see the<|user|>the<think>") == ["s", "e", "e", "Ġthe", "<|user|>", "t", "he", "<think>"]
    assert tokenizer.token_id("<|end|>") == 0
    assert tokenizer.token_id("<|absent|>") is None
    ids = tokenizer.encode("a<|user|>b<think>")
    assert tokenizer.decode(ids) == "a<|user|>b<think>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<think>"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", "Ġ", "12", "12", "3"]),
        ("smollm", ["a", "Ġ", "1", "2", "1", "2", "3"]),
        ("llama-bpe", ["a", "Ġ", "12", "1", "2", "3"]),  # digits in threes: 121 | 23
        ("qwen2", ["a", "Ġ", "1", "2", "1", "2", "3"]),
    ],
)
def test_digits_are_cut_as_the_file_says(make_gguf: MakeGguf, pre: str, expected: list[str]) -> None:
    assert pieces(Tokenizer.from_gguf(make_gguf(pre=pre)), "a 12123") == expected


def test_qwen2_normalizes(make_gguf: MakeGguf) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    qwen, smollm = (Tokenizer.from_gguf(make_gguf(pre=pre)) for pre in ("qwen2", "smollm"))
    assert qwen.encode(decomposed) == qwen.encode(composed)
    assert smollm.encode(decomposed) != smollm.encode(composed)


def test_a_begin_token_is_added_where_the_file_wants_one(make_gguf: MakeGguf) -> None:
    tokenizer = Tokenizer.from_gguf(make_gguf(bos=True))
    plain = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the") == [0, *plain]
    assert Tokenizer.from_gguf(make_gguf(bos=False)).encode("the") == plain


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_any_text_round_trips_also_through_a_file(text: str, tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    original, reloaded = tokenizers
    ids = original.encode(text)
    assert original.decode(ids) == text
    assert reloaded.encode(text) == ids


@pytest.fixture
def tokenizers(make_gguf: MakeGguf, tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and itself after saving and loading."""
    original = Tokenizer.from_gguf(make_gguf())
    original.save(tmp_path / "tokenizer.json")
    return original, Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"model": "llama"}, "tokenizer 'llama' is not byte-level BPE"),
        ({"pre": "smollm3"}, "pre-tokenizer 'smollm3' is not supported; did you mean 'smollm'"),
        ({"merges": ["Ġ zz"]}, "merges do not fit its tokens"),
    ],
)
def test_other_tokenizers_are_refused(make_gguf: MakeGguf, settings: dict[str, Any], culprit: str) -> None:
    weights = make_gguf(**settings)
    with pytest.raises(ModelError, match=culprit):
        Tokenizer.from_gguf(weights)
    assert Tokenizer.supports(weights) == ("merges" in settings)


def test_bad_files(make_gguf: MakeGguf, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Tokenizer.from_file(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"bad\.json is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "bad.json")
    with pytest.raises(OutputError, match="cannot write"):
        Tokenizer.from_gguf(make_gguf()).save(tmp_path / "absent" / "tokenizer.json")


def test_a_tokenizer_is_found_in_a_file_in_a_folder_and_in_weights(make_gguf: MakeGguf, tmp_path: Path) -> None:
    weights = make_gguf()
    Tokenizer.from_gguf(weights).save(tmp_path / "tokenizer.json")
    text = "a few words"
    expected = Tokenizer.from_gguf(weights).encode(text)
    for source in (tmp_path, tmp_path / "tokenizer.json", weights.path):
        assert Tokenizer.open(source).encode(text) == expected
    with pytest.raises(ModelError, match=r"none/tokenizer\.json does not exist|none does not exist"):
        Tokenizer.open(tmp_path / "none")


def test_tokens_that_end_a_text(make_gguf: MakeGguf) -> None:
    tokenizer = Tokenizer.from_gguf(make_gguf())
    assert tokenizer.end_ids == {tokenizer.token_id("<|end|>")}
    tokenizer.backend.add_special_tokens(["<|im_start|>", "</s>"])
    assert tokenizer.end_ids == {tokenizer.token_id("<|end|>"), tokenizer.token_id("</s>")}
