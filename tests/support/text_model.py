"""A small language model over bytes, for servers."""

from pathlib import Path

from tokenizers import decoders

from graphopt.models.tokenizer import Tokenizer
from tests.support.decoders import with_static_cache, write_decoder
from tests.support.language import bytes_tokenizer

VOCABULARY = 256


def write_text_model(folder: Path) -> Path:
    """Write a random decoder over bytes with a cache updated in place, and its tokenizer.json; return the .onnx."""
    write_decoder(folder / "growing.onnx", vocabulary=VOCABULARY)
    backend = bytes_tokenizer()
    backend.decoder = decoders.ByteLevel()
    Tokenizer(backend).save(folder / "tokenizer.json")
    return with_static_cache(folder / "growing.onnx", folder / "model.onnx")
