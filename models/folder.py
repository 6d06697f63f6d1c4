"""A model folder: ``model.onnx``, ``model.onnx.data``, ``config.json`` and, where there is text, ``tokenizer.json``."""

__all__ = ["write_folder"]

import json
import os
from pathlib import Path

from graphopt.errors import OutputError
from graphopt.models.bert import BertConfig, build_bert
from graphopt.models.graph_builder import Progress
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.tokenizer import Tokenizer
from graphopt.models.weights import WeightSource


def write_folder(
    folder: str | os.PathLike[str],
    source: WeightSource[LlamaConfig] | WeightSource[BertConfig],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
    opset: int = 18,
    progress: Progress | None = None,
) -> list[Path]:
    """Build the model of ``source`` into ``folder``, which is made if need be.

    Args:
        folder: where to write; files of the same names are replaced, each atomically.
        source: weights and configuration, of a decoder or of an encoder.
        tokenizer: saved beside the model, if given.
        dtype: "float32", "float16" or "bfloat16".
        opset: standard ONNX opset, 17 to 23.
        progress: called after each weight with (weights written, weights in all, name).

    Returns:
        The files written, the model first.

    Raises:
        ModelError: dtype or opset is unknown, or a weight cannot be used.
        OutputError: the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder {folder}: {e.strerror or e}") from e
    config, path = source.config, folder / "model.onnx"
    if isinstance(config, LlamaConfig):
        written = build_llama(config, source, path, dtype=dtype, opset=opset, progress=progress)  # type: ignore[arg-type]
    else:
        written = build_bert(config, source, path, dtype=dtype, opset=opset, progress=progress)  # type: ignore[arg-type]
    _write_json(folder / "config.json", {**config.to_hf(), "dtype": dtype})
    written.append(folder / "config.json")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
        written.append(folder / "tokenizer.json")
    return written


def _write_json(path: Path, table: dict[str, object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}; nothing was written") from e
    finally:
        partial.unlink(missing_ok=True)
