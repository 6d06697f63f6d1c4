"""Flags that say which data a model is run on, shared by the verbs that run models."""

__all__ = [
    "DataFlag",
    "LengthFlag",
    "RandomFlag",
    "Source",
    "TextFlag",
    "TokenizerFlag",
    "corpus",
]

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graphopt.calibrate import feeds
from graphopt.calibrate.corpus import Corpus, Split
from graphopt.calibrate.feeds import Feed
from graphopt.errors import CalibrationError
from graphopt.ir import Model

TextFlag = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 text or MediaWiki XML dump (also .bz2).", show_default="the Wikipedia sample of the assets"
    ),
]
TokenizerFlag = Annotated[
    Path | None, typer.Option(help="tokenizer.json for the text.", show_default="beside the model")
]
DataFlag = Annotated[
    Path | None, typer.Option(help="An .npz of arrays named like the model's inputs; the first axis counts samples.")
]
RandomFlag = Annotated[int | None, typer.Option(metavar="SEED", help="Seeded random inputs instead of real data.")]
LengthFlag = Annotated[int, typer.Option(min=2, help="Tokens of a sample (with --random: size of free dimensions).")]


def corpus(text: Path | None, tokenizer: Path | None, model: Path) -> Corpus:
    """Return the tokenized text; by default the Wikipedia sample, and the tokenizer beside the model."""
    from graphopt.models import assets

    return Corpus.from_file(text or assets.path("wikipedia"), tokenizer or model.with_name("tokenizer.json"))


@dataclass(frozen=True)
class Source:
    """What the flags of these names say."""

    text: Path | None
    tokenizer: Path | None
    data: Path | None
    random: int | None
    samples: int
    length: int

    def feeds(self, model: Model, path: Path, split: Split) -> tuple[list[Feed], dict[str, object]]:
        """Return feeds for ``model``, and a description of where they come from.

        Args:
            model: as loaded from ``path``.
            path: the tokenizer is looked for beside it.
            split: which part of a text to take.

        Raises:
            CalibrationError: more than one source is given, or the source does not fit the model.
        """
        named = {"--text": self.text, "--data": self.data, "--random": self.random}
        given = [flag for flag, value in named.items() if value is not None]
        if len(given) > 1:
            raise CalibrationError(f"{' and '.join(given)} are two sources of data; give one")
        inputs = feeds.declared(model)
        if self.data is not None:
            found = list(itertools.islice(feeds.from_npz(inputs, self.data), self.samples))
            return found, {"kind": "npz", "path": str(self.data)}
        if self.random is not None:
            made = feeds.random(inputs, samples=self.samples, length=self.length, seed=self.random)
            return list(made), {"kind": "random", "seed": self.random, "length": self.length}
        if all(item.name != feeds.TOKENS for item in inputs):
            raise CalibrationError(f"{path} has no input '{feeds.TOKENS}' for text; give data with --data or --random")
        beside = path.with_name("tokenizer.json")
        if self.tokenizer is None and not beside.is_file():
            raise CalibrationError(
                f"there is no {beside} for text; say where it is with --tokenizer, or give data with --data or --random"
            )
        text = corpus(self.text, self.tokenizer, path)
        chunks = text.chunks(split, self.samples, self.length)
        description = {"kind": "text", "path": text.source, "split": split, "length": self.length}
        return [feeds.from_tokens(inputs, chunk[None]) for chunk in chunks], description
