"""Weights from safetensors files, read with numpy alone.

Format: 8 bytes little-endian header length n, n bytes of JSON ``{name: {dtype, shape, data_offsets: [begin, end]}}``
with offsets counted from byte 8 + n, then the data, row-major, little-endian, without gaps.
A checkpoint of several files has an index ``{"weight_map": {tensor name: file name}}``.
"""

__all__ = ["SafetensorsFile", "SafetensorsWeights"]

import json
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError, nearest
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import check_all_read

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INTEGERS: dict[str, np.dtype[Any]] = {"I8": np.dtype(np.int8), "I16": np.dtype(np.int16)}
#: Of the types that are only measured, not read; a file may hold them beside its weights.
_OTHER_ITEMSIZE = {
    "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
#: The limit of the reference implementation: a larger header is a damaged length field.
_MAX_HEADER_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # byte in the file
    end: int


class SafetensorsFile:
    """One .safetensors file: its header is read and checked, its data is mapped on demand.

    Raises:
        ModelError: the file is missing, truncated, or its header is not valid (wrong sizes, overlapping tensors,
            offsets outside the file, names given twice).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path} does not exist or is not a file")
        try:
            self._entries = self._read_header()
        except OSError as e:
            raise ModelError(f"cannot read {self.path}: {e.strerror or e}") from e

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the header."""
        return list(self._entries)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only memory map of the tensor ``name``: float32, float16 or bfloat16.

        Raises:
            ModelError: there is no such tensor, or it has another dtype.
        """
        return self._mapped(name, _DTYPES, "weights can be read, so use the checkpoint before it was quantized")

    def integers(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only memory map of the tensor ``name``: int8 or int16.

        Raises:
            ModelError: there is no such tensor, or it has another dtype.
        """
        return self._mapped(name, _INTEGERS, "codes can be read")

    def _mapped(self, name: str, kinds: dict[str, np.dtype[Any]], purpose: str) -> npt.NDArray[Any]:
        entry = self._entries.get(name)
        if entry is None:
            raise ModelError(f"{self.path}: no tensor '{name}'{nearest(name, self._entries)}")
        dtype = kinds.get(entry.dtype)
        if dtype is None:
            raise ModelError(f"{self.path}: tensor '{name}' has dtype {entry.dtype}; only {', '.join(kinds)} {purpose}")
        if entry.begin == entry.end:
            return np.empty(entry.shape, dtype)
        data = np.memmap(self.path, np.uint8, "r", entry.begin, (entry.end - entry.begin,))
        return data.view(dtype).reshape(entry.shape)

    def _read_header(self) -> dict[str, _Entry]:
        size = self.path.stat().st_size
        with self.path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > _MAX_HEADER_BYTES or 8 + length > size:
                raise ModelError(f"{self.path} is not a safetensors file, or it is truncated ({size} bytes)")
            raw = f.read(length)
        try:
            header = json.loads(raw, object_pairs_hook=self._unique)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ModelError(f"{self.path} is not a safetensors file: its header is not JSON") from e
        if not isinstance(header, dict):
            raise ModelError(f"{self.path} is not a safetensors file: its header is not a table of tensors")
        header.pop("__metadata__", None)
        entries = {name: self._entry(name, fields, 8 + length) for name, fields in header.items()}
        self._check_layout(entries, 8 + length, size)
        return entries

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"{self.path}: the header names '{twice}' twice")
        return table

    def _entry(self, name: str, fields: Any, start: int) -> _Entry:
        try:
            dtype, shape, (begin, end) = str(fields["dtype"]), tuple(fields["shape"]), fields["data_offsets"]
            ints = all(type(value) is int and value >= 0 for value in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            ints = False
        if not ints:
            raise ModelError(
                f"{self.path}: the header entry of '{name}' needs dtype, shape and data_offsets [begin, end]"
            )
        known = _DTYPES.get(dtype)
        itemsize = known.itemsize if known else _OTHER_ITEMSIZE.get(dtype)
        if itemsize is None:
            raise ModelError(f"{self.path}: tensor '{name}' has the unknown dtype '{dtype}'")
        expected = math.prod(shape) * itemsize
        if end - begin != expected:
            raise ModelError(
                f"{self.path}: tensor '{name}' has {end - begin} bytes, but {dtype} of shape {list(shape)} needs "
                f"{expected}"
            )
        return _Entry(dtype, shape, start + begin, start + end)

    def _check_layout(self, entries: dict[str, _Entry], start: int, size: int) -> None:
        """Data must follow the header without gaps or overlaps and end with the file."""
        at = start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.end > size:
                raise ModelError(
                    f"{self.path} is truncated: tensor '{name}' ends at byte {entry.end}, the file at {size}"
                )
            if entry.begin != at:
                problem = "overlaps the tensor before it" if entry.begin < at else "leaves a gap before it"
                raise ModelError(
                    f"{self.path} is damaged: tensor '{name}' {problem} (byte {entry.begin}, expected {at})"
                )
            at = entry.end
        if at != size:
            raise ModelError(f"{self.path} is damaged: {size - at} bytes follow its last tensor")


class SafetensorsWeights:
    """A Llama-family checkpoint of Hugging Face's layout; a `WeightSource`.

    Args:
        folder: holds ``config.json`` and either ``model.safetensors`` or ``model.safetensors.index.json`` with its
            shards.

    Raises:
        ModelError: a file is missing or damaged, the index points outside the folder, or there are norms or biases that
            config.json does not mention.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.config = LlamaConfig.from_hf(_read_json(self.folder / "config.json"))
        index = self.folder / _INDEX
        if index.is_file():
            self._shard_of = self._read_index(index)
        else:
            self._shard_of = dict.fromkeys(SafetensorsFile(self.folder / _SINGLE).names, _SINGLE)
        self._files: dict[str, SafetensorsFile] = {}
        check_all_read(self.folder, self._shard_of, self.config.weight_shapes())

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors of the checkpoint."""
        return self._shard_of.keys()

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only memory map of the tensor ``name``, [out, in]: float32, float16 or bfloat16."""
        return self._file_of(name).tensor(name)

    def integers(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only memory map of the tensor ``name``: int8 or int16."""
        return self._file_of(name).integers(name)

    def _file_of(self, name: str) -> SafetensorsFile:
        shard = self._shard_of.get(name)
        if shard is None:
            raise ModelError(f"{self.folder}: the checkpoint has no tensor '{name}'{nearest(name, self._shard_of)}")
        if shard not in self._files:
            self._files[shard] = SafetensorsFile(self.folder / shard)
        return self._files[shard]

    def _read_index(self, path: Path) -> dict[str, str]:
        weight_map = _read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise ModelError(f"{path}: 'weight_map' must be a table of tensor names and file names")
        for shard in sorted(set(weight_map.values())):
            if shard == ".." or Path(shard).name != shard:
                raise ModelError(
                    f"{path} points to '{shard}', outside the checkpoint's folder; move the file beside the index"
                )
            if not (self.folder / shard).is_file():
                raise ModelError(f"{path} names the file {shard}, which is missing; download it into {self.folder}")
        return weight_map


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path} does not exist; give a folder with the whole checkpoint")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(table, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return table
