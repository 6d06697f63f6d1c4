"""Text -> token chunks, split so that calibration and evaluation never see the same token.

The tokens of a text are cut into blocks of fixed length; even blocks belong to evaluation, odd blocks to calibration.
The cut depends on the text alone, so any number of chunks of any length is disjoint between the two. Chunks never
cross the edge of a block, and are spread evenly over the text.
"""

__all__ = ["Corpus", "Split", "read_text"]

import bz2
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from xml.etree import ElementTree

import numpy as np

from graphopt.calibrate import wikitext
from graphopt.errors import CalibrationError, GraphOptError

Split = Literal["calibration", "evaluation"]
#: Length of a block in tokens: above the longest chunk that anybody asks for, yet many blocks in a text of a megabyte.
BLOCK_TOKENS = 4096
_DUMP_START = b"<mediawiki "
#: A text shorter than two such blocks is cut into this many shorter ones.
_MIN_BLOCKS = 8


@dataclass(frozen=True)
class Corpus:
    """A tokenized text.

    Attributes:
        tokens: (T,) int64, without special tokens.
        prefix, suffix: special tokens that the tokenizer puts around a text (BOS, [CLS], [SEP]); usually empty.
        source: where the text comes from, for messages and reports.
    """

    tokens: np.ndarray
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    source: str = "text"

    @classmethod
    def from_file(cls, text: Path, tokenizer: Path) -> "Corpus":
        """Tokenize a file.

        Args:
            text: UTF-8 text, or a MediaWiki XML dump; either may be compressed (.bz2).
            tokenizer: a tokenizer.json.

        Raises:
            CalibrationError: a file is missing, damaged or empty.
        """
        encoder = _load_tokenizer(tokenizer)
        # Paragraph by paragraph: some tokenizers take quadratic time on long inputs, and a batch uses all cores.
        encodings = encoder.encode_batch(read_text(text).splitlines(keepends=True), add_special_tokens=False)
        tokens = np.concatenate([np.asarray(e.ids, np.int64) for e in encodings] or [np.zeros(0, np.int64)])
        probe = encoder.encode("a")
        inner = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        return cls(tokens, tuple(probe.ids[: inner[0]]), tuple(probe.ids[inner[-1] + 1 :]), str(text))

    def chunks(self, split: Split, count: int, length: int) -> np.ndarray:
        """Return (count, length) int64: chunks of ``length`` tokens, special tokens included, evenly spread.

        Raises:
            CalibrationError: the split has fewer than ``count`` such chunks.
        """
        special = len(self.prefix) + len(self.suffix)
        if count < 1 or length - special < 2:
            raise CalibrationError(
                f"cannot cut {count} chunks of {length} tokens; ask for at least 1 chunk of {special + 2}"
            )
        starts = self._starts(split, length - special)
        if len(starts) < count:
            raise CalibrationError(
                f"{self.source} has {len(self.tokens)} tokens, enough for {len(starts)} {split} chunks of {length}; "
                f"{count} were asked for: give a longer text, or fewer or shorter chunks"
            )
        picked = starts[np.arange(count) * len(starts) // count]
        inner = self.tokens[picked[:, None] + np.arange(length - special)]
        before, after = (np.tile(np.array(t, np.int64), (count, 1)) for t in (self.prefix, self.suffix))
        return np.concatenate([before, inner, after], axis=1)

    def _starts(self, split: Split, length: int) -> np.ndarray:
        """Positions of all chunks of ``length`` tokens that lie inside the blocks of ``split``, one after the other."""
        total = len(self.tokens)
        block = min(BLOCK_TOKENS, total // _MIN_BLOCKS)
        first = {"evaluation": 0, "calibration": block}[split]
        starts = [
            np.arange(begin, min(begin + block, total) - length + 1, length)
            for begin in range(first, total, 2 * block or 1)
        ]
        return np.concatenate(starts or [np.zeros(0, np.int64)]).astype(np.int64)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, or the prose of a MediaWiki XML dump, one paragraph a line; either may be .bz2.

    Raises:
        CalibrationError: the file is missing, truncated, empty, or not UTF-8.
    """
    try:
        file: IO[bytes]
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as file:
            is_dump = file.read(len(_DUMP_START)) == _DUMP_START
            file.seek(0)
            if is_dump:
                text = "\n".join(filter(None, map(wikitext.prose, wikitext.articles(file))))
            else:
                text = file.read().decode("utf-8")
    except FileNotFoundError as e:
        raise CalibrationError(f"text file {path} does not exist") from e
    except UnicodeDecodeError as e:
        raise CalibrationError(
            f"{path} is not UTF-8 text (byte {e.start}); convert it, or give --data for an .npz"
        ) from e
    except ElementTree.ParseError as e:
        raise CalibrationError(f"{path} is not a MediaWiki dump, or it is truncated: {e}") from e
    except (OSError, EOFError) as e:
        raise CalibrationError(f"cannot read text file {path}: {getattr(e, 'strerror', None) or e}") from e
    if not text.strip():
        raise CalibrationError(f"{path} holds no text")
    return text


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise GraphOptError("text needs the tokenizers package; install it with: pip install 'graphopt[llm]'") from e
    if not path.is_file():
        raise CalibrationError(f"tokenizer {path} does not exist; give the model's tokenizer.json with --tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises bare Exceptions
        raise CalibrationError(f"{path} is not a tokenizer.json of the tokenizers package: {e}") from e
    # Encoders often come with "truncate to 128 tokens" set.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
