"""Text to token ids and back: byte-level BPE tokenizers out of a GGUF file's metadata, or any ``tokenizer.json``."""

__all__ = ["Tokenizer"]

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.errors import ModelError, OutputError, nearest
from graphopt.models.gguf_weights import GgufWeights

#: llama.cpp token types (GGUF ``tokenizer.ggml.token_type``).
_CONTROL, _USER_DEFINED = 3, 4

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: How text is cut before BPE, by GGUF ``tokenizer.ggml.pre``. "gpt2" is the regular expression built into ByteLevel.
_SPLITS = {
    "gpt-2": "gpt2",
    "smollm": "digits, gpt2",
    "starcoder": "digits, gpt2",
    "refact": "digits, gpt2",
    "command-r": "digits, gpt2",
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
#: Tokens that end a text or a turn, by the names that model families give them.
_END = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "<eos>",
    "</s>",
)  # fmt: skip


class Tokenizer:
    """A `tokenizers.Tokenizer` with the few calls that calibration and evaluation need.

    Args:
        backend: the `tokenizers.Tokenizer`.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    @staticmethod
    def supports(weights: GgufWeights) -> bool:
        """Whether `from_gguf` can build the tokenizer of this file."""
        return weights.metadata("tokenizer.ggml.model") == "gpt2" and weights.metadata("tokenizer.ggml.pre") in _SPLITS

    @classmethod
    def from_gguf(cls, weights: GgufWeights) -> "Tokenizer":
        """Build the tokenizer that a GGUF file describes.

        Raises:
            ModelError: the file has no byte-level BPE tokenizer, or cuts text in an unknown way.
        """
        t = _library()
        kind, pre = weights.metadata("tokenizer.ggml.model"), weights.metadata("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise ModelError(
                f"{weights.path}: tokenizer '{kind}' is not byte-level BPE; give the model's tokenizer.json instead"
            )
        if pre not in _SPLITS:
            raise ModelError(f"{weights.path}: pre-tokenizer '{pre}' is not supported{nearest(str(pre), _SPLITS)}")
        tokens = weights.metadata("tokenizer.ggml.tokens", [])
        # Pieces are in the byte alphabet, which has no space: the only one separates the two sides of a merge.
        merges = [tuple(merge.split(" ")) for merge in weights.metadata("tokenizer.ggml.merges", [])]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        try:
            # Llama 3 looks whole words up before it merges.
            backend = t.Tokenizer(t.models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
        except Exception as e:  # the library raises bare Exception for merges of unknown pieces
            raise ModelError(f"{weights.path}: the tokenizer's merges do not fit its tokens: {e}") from e
        backend.normalizer = t.normalizers.NFC() if pre == "qwen2" else None
        backend.pre_tokenizer = _pre_tokenizer(t, _SPLITS[pre])
        backend.decoder = t.decoders.ByteLevel()
        types = weights.metadata("tokenizer.ggml.token_type", [])
        for wanted in (_CONTROL, _USER_DEFINED):
            added = [
                t.AddedToken(token, special=wanted == _CONTROL, normalized=False)
                for token, kind in zip(tokens, types, strict=False)
                if kind == wanted
            ]
            (backend.add_special_tokens if wanted == _CONTROL else backend.add_tokens)(added)
        if weights.metadata("tokenizer.ggml.add_bos_token", False):
            bos = tokens[weights.metadata("tokenizer.ggml.bos_token_id")]
            backend.post_processor = t.processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
            )
        return cls(backend)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Load a Hugging Face ``tokenizer.json``.

        Raises:
            ModelError: the file is missing or not a tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"{path} does not exist or is not a file; give the path of a tokenizer.json")
        try:
            return cls(_library().Tokenizer.from_file(str(path)))
        except Exception as e:  # the library raises bare Exception for every kind of bad file
            raise ModelError(f"{path} is not a tokenizer.json: {e}") from e

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Load a tokenizer from a ``tokenizer.json``, from the folder that holds one, or from a ``.gguf`` file.

        Raises:
            ModelError: there is none, or it cannot be used.
        """
        path = Path(path)
        if path.suffix == ".gguf":
            return cls.from_gguf(GgufWeights(path))
        return cls.from_file(path / "tokenizer.json" if path.is_dir() else path)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the special tokens that end a text or a turn."""
        found = (self.token_id(token) for token in _END)
        return frozenset(i for i in found if i is not None)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Return the id of a token such as ``<|im_end|>``, or None where the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``; special tokens written out in it become their single id.

        Args:
            text: any string.
            add_special_tokens: also add those the model wants around a text, such as a begin token.
        """
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``tokenizer.json``, atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(self.backend.to_str(pretty=False), encoding="utf-8")
            partial.replace(path)
        except OSError as e:
            raise OutputError(f"cannot write {path}: {e.strerror or e}; nothing was written") from e
        finally:
            partial.unlink(missing_ok=True)


def _library() -> Any:
    """Return the package tokenizers."""
    try:
        import tokenizers
    except ImportError as e:
        raise ModelError("tokenizing text needs the package tokenizers: pip install 'graphopt[llm]'") from e
    return tokenizers


def _pre_tokenizer(t: Any, split: str) -> Any:
    """Return the pre-tokenizer for an entry of `_SPLITS`."""
    p = t.pre_tokenizers
    if split == "gpt2":
        return p.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "digits, gpt2":
        return p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False, use_regex=True)])
    return p.Sequence(
        [p.Split(t.Regex(split), behavior="isolated"), p.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
