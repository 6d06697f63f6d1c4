import bz2
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from graphopt.calibrate.corpus import BLOCK_TOKENS, Corpus, Split, read_text
from graphopt.errors import CalibrationError, GraphOptError
from tests.support.language import bytes_tokenizer

SENTENCE = "A language model is calibrated on running prose, and this sentence is long enough to count as such."
DUMP = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><page><title>A</title><ns>0</ns><revision><text>'
    f"'''{SENTENCE}'''</text></revision></page></mediawiki>"
)


@given(st.data())
def test_calibration_and_evaluation_never_share_a_token(data: st.DataObject) -> None:
    corpus = Corpus(np.arange(data.draw(st.integers(200, 60_000), label="tokens")))
    seen: dict[Split, set[int]] = {"calibration": set(), "evaluation": set()}
    for split, tokens in seen.items():
        for _ in range(2):
            count, length = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 600))
            try:
                chunks = corpus.chunks(split, count, length)
            except CalibrationError:
                continue
            assert chunks.shape == (count, length)
            assert (np.diff(chunks, axis=1) == 1).all()
            assert len(np.unique(chunks)) == chunks.size
            tokens.update(chunks.reshape(-1).tolist())
    assert not seen["calibration"] & seen["evaluation"]


def test_chunks_are_spread_over_the_whole_text() -> None:
    corpus = Corpus(np.arange(100 * BLOCK_TOKENS))
    starts = corpus.chunks("evaluation", 16, 512)[:, 0]
    gaps = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] > 90 * BLOCK_TOKENS
    assert gaps.max() - gaps.min() <= 2 * BLOCK_TOKENS


@pytest.mark.parametrize(("split", "first"), [("evaluation", 0), ("calibration", 1)])
def test_a_split_is_every_other_block(split: Split, first: int) -> None:
    chunks = Corpus(np.arange(8 * BLOCK_TOKENS)).chunks(split, 4 * BLOCK_TOKENS // 512, 512)
    blocks = np.arange(8 * BLOCK_TOKENS).reshape(8, BLOCK_TOKENS)
    np.testing.assert_array_equal(chunks.reshape(-1), blocks[first::2].reshape(-1))


@pytest.mark.parametrize(("count", "length"), [(1000, 512), (1, BLOCK_TOKENS + 1), (0, 512), (1, 1)])
def test_too_much_is_refused(count: int, length: int) -> None:
    with pytest.raises(CalibrationError, match="chunk"):
        Corpus(np.arange(50 * BLOCK_TOKENS), source="book.txt").chunks("calibration", count, length)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(CalibrationError, match="has 0 tokens"):
        Corpus(np.zeros(0, np.int64)).chunks("evaluation", 1, 8)


def test_tokens_are_those_of_the_text(tmp_path: Path) -> None:
    text = "First line.\nnaïve second\n\nlast"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    corpus = Corpus.from_file(tmp_path / "a.txt", tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(corpus.tokens, bytes_tokenizer().encode(text).ids)
    assert (corpus.prefix, corpus.suffix) == ((), ())


def test_special_tokens_surround_each_chunk(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=3000)
    (tmp_path / "a.txt").write_text("".join(chr(33 + i % 90) for i in range(2000)))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    corpus = Corpus.from_file(tmp_path / "a.txt", tmp_path / "tokenizer.json")
    assert len(corpus.tokens) == 2000
    chunks = corpus.chunks("evaluation", 3, 34)
    assert chunks.shape == (3, 34)
    assert (chunks[:, 0] == 256).all()
    assert (chunks[:, -1] == 257).all()
    assert (chunks[:, 1:-1] < 256).all()


@pytest.mark.parametrize("name", ["d.xml", "d.xml.bz2", "dump-xml-shortened.bz2"])
def test_a_dump_is_cleaned_whatever_its_name(tmp_path: Path, name: str) -> None:
    raw = DUMP.encode()
    (tmp_path / name).write_bytes(bz2.compress(raw) if name.endswith("bz2") else raw)
    assert read_text(tmp_path / name) == SENTENCE


def test_compressed_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress("naïve".encode()))
    assert read_text(tmp_path / "a.txt.bz2") == "naïve"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8 text \\(byte 3\\)"),
        ("empty.txt", b" \n ", "holds no text"),
        ("cut.xml", DUMP.encode()[:-20], "truncated"),
        ("cut.xml.bz2", bz2.compress(DUMP.encode())[:-10], "cannot read"),
        ("fake.bz2", b"plain text", "cannot read"),
    ],
)
def test_bad_text_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as e:
        read_text(tmp_path / name)
    assert name in str(e.value)


def test_bad_tokenizers_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(CalibrationError, match=r"tokenizer .*none.json does not exist"):
        Corpus.from_file(tmp_path / "a.txt", tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"model": 3}')
    with pytest.raises(CalibrationError, match=r"is not a tokenizer\.json"):
        Corpus.from_file(tmp_path / "a.txt", tmp_path / "bad.json")


def test_without_the_tokenizers_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(GraphOptError, match=r"needs the tokenizers package; install it with: pip install"):
        Corpus.from_file(tmp_path / "a.txt", tmp_path / "tokenizer.json")
