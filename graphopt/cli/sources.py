"""Flags that say which data a model is run on, shared by the verbs that run models."""

__all__ = ["DataFlag", "LengthFlag", "RandomFlag", "TextFlag", "TokenizerFlag", "corpus", "ensure_writable", "feeds"]

import os
from pathlib import Path
from typing import Annotated

import typer

from graphopt.calibrate import feeds as sources
from graphopt.calibrate.corpus import Corpus, Split
from graphopt.calibrate.feeds import Feed
from graphopt.errors import CalibrationError, OutputError
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


def feeds(
    model: Model,
    path: Path,
    split: Split,
    *,
    text: Path | None,
    tokenizer: Path | None,
    data: Path | None,
    random: int | None,
    samples: int,
    length: int,
) -> tuple[list[Feed], dict[str, object]]:
    """Return the feeds that the flags ask for, and a description of where they come from.

    Raises:
        CalibrationError: more than one source is given, or the source does not fit the model.
    """
    given = [f for f, value in (("--text", text), ("--data", data), ("--random", random)) if value is not None]
    if len(given) > 1:
        raise CalibrationError(f"{' and '.join(given)} are two sources of data; give one")
    inputs = sources.declared(model)
    if data is not None:
        return list(sources.from_npz(inputs, data))[:samples], {"kind": "npz", "path": str(data)}
    if random is not None:
        made = sources.random(inputs, samples=samples, length=length, seed=random)
        return list(made), {"kind": "random", "seed": random, "length": length}
    source = corpus(text, tokenizer, path)
    chunks = source.chunks(split, samples, length)
    description = {"kind": "text", "path": source.source, "split": split, "length": length}
    return [sources.from_tokens(inputs, chunk[None]) for chunk in chunks], description


def ensure_writable(output: Path) -> None:
    """Refuse before the work, not after it, to write where one cannot.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    folder = output.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise OutputError(f"cannot write {output}: its folder does not exist or cannot be written")
