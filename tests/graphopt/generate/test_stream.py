from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders
from tokenizers.pre_tokenizers import ByteLevel

from graphopt.generate import TextStream
from graphopt.models.tokenizer import Tokenizer
from tests.support.language import bytes_tokenizer


def _bytes_decoder() -> Tokenizer:
    backend = bytes_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


WORDS = _bytes_decoder()


def pieces(stream: TextStream, ids: Sequence[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.finish()]


def test_a_character_comes_whole() -> None:
    stream = TextStream(WORDS.decode)
    assert pieces(stream, WORDS.encode("aé€😀b")) == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]
    assert stream.text == "aé€😀b"


def test_bytes_that_are_no_character_are_not_held_forever() -> None:
    ids = [*WORDS.encode("é")[:1], *WORDS.encode("plain text")]
    stream = TextStream(WORDS.decode)
    got = pieces(stream, ids)
    assert stream.text == "".join(got) == WORDS.decode(ids)
    assert got[1] != ""


@given(st.text(max_size=30))
def test_pieces_add_up_to_the_text(text: str) -> None:
    stream = TextStream(WORDS.decode)
    assert "".join(pieces(stream, WORDS.encode(text))) == stream.text == text


@given(st.text(max_size=9), st.integers(1, 3), st.text(max_size=9))
def test_broken_characters_cost_no_others(before: str, kept: int, after: str) -> None:
    """A character of which the last bytes are missing, in the middle of a text."""
    ids = [*WORDS.encode(before), *WORDS.encode("😀")[:kept], *WORDS.encode(f"x{after}")]
    stream = TextStream(WORDS.decode)
    assert "".join(pieces(stream, ids)) == WORDS.decode(ids)


#: Bytes that begin characters, go on with them, or are none, as tokens.
_BYTES = tuple(bytes_tokenizer().token_to_id(c) for c in ByteLevel.alphabet())
_HARD = [t for t in (WORDS.encode(c) for c in "aé€भ😀") for t in t]


@given(st.lists(st.one_of(st.sampled_from(_HARD), st.sampled_from(_BYTES)), max_size=16))
def test_pieces_of_any_bytes_add_up(ids: list[int]) -> None:
    assert "".join(pieces(TextStream(WORDS.decode), ids)) == WORDS.decode(ids)


@pytest.mark.parametrize(
    ("text", "stop", "shown", "met"),
    [
        ("one. two", [". "], "one", ". "),
        ("aaab", ["aab"], "a", "aab"),
        ("abcabd", ["abd"], "abc", "abd"),
        ("no stop", ["stopped"], "no stop", None),
        ("first, second", ["second", "first"], "", "first"),
        ("x", ["", "x"], "", "x"),
    ],
)
def test_nothing_of_a_stop_string_is_shown(text: str, stop: list[str], shown: str, met: str | None) -> None:
    stream = TextStream(WORDS.decode, stop)
    seen = ""
    for token in WORDS.encode(text):
        seen += stream.push(token)
        assert not any(s and s in seen for s in stop)
    seen += stream.finish()
    assert (seen, stream.text, stream.stopped) == (shown, shown, met)


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=4))
def test_the_text_ends_where_the_stop_string_begins(text: str, stop: str) -> None:
    stream = TextStream(WORDS.decode, [stop])
    pieces(stream, WORDS.encode(text))
    assert stream.text == text.partition(stop)[0]
    assert (stream.stopped == stop) == (stop in text)
