"""Calibration statistics of linears and attention, and the file that carries them from `calibrate` to `optimize`."""

__all__ = ["AttentionStatistics", "LinearStatistics", "Statistics", "require_second_moment"]

import json
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import CalibrationError
from graphopt.ir.files import replacing

_FORMAT = 1
#: Second moments from this many bytes on stay in the file, mapped; smaller ones are read, and so checked.
_MAPPED_BYTES = 16 << 20
#: Bytes of a ZIP archive's header of a member, without its name.
_LOCAL_HEADER = 30
#: What reading a file that is truncated, damaged or something else altogether raises.
_DAMAGE = (
    LookupError,
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,  # zipfile: encrypted, or compressed in a way that it does not know
    zipfile.BadZipFile,
)


@dataclass
class LinearStatistics:
    """Statistics of one linear's input X [tokens, K].

    Attributes:
        absmax: (K,) float32, max over tokens of |X[:, k]|.
        mean_square: (K,) float64, mean over tokens of X[:, k]².
        tokens: number of tokens seen.
        second_moment: (K, K) float32, mean over tokens of XᵀX; only if asked for. Large ones are memory maps.
    """

    absmax: np.ndarray
    mean_square: np.ndarray
    tokens: int
    second_moment: np.ndarray | None = None

    @property
    def channels(self) -> int:
        """K, the number of input channels."""
        return int(self.absmax.shape[0])

    @property
    def rms(self) -> float:
        """Root mean square of the whole input, over tokens and channels."""
        return float(np.sqrt(self.mean_square.mean()))

    def damage(self) -> str | None:
        """What is wrong with the arrays, as the end of a sentence; None if they belong together and are finite."""
        moment = self.second_moment
        if self.absmax.ndim != 1 or self.mean_square.shape != self.absmax.shape:
            return f"has channel statistics of shapes {self.absmax.shape} and {self.mean_square.shape}"
        if moment is not None and moment.shape != (self.channels, self.channels):
            return f"has {self.channels} channels but a second moment of shape {moment.shape}"
        small = None if isinstance(moment, np.memmap) else moment
        given = (a for a in (self.absmax, self.mean_square, small) if a is not None)
        if not all(np.isfinite(a).all() for a in given):
            return "has statistics that are not finite"
        return None


def require_second_moment(entry: LinearStatistics | None, setting: str, linear: str) -> None:
    """Check that the statistics ``entry`` of ``linear`` have the second moment that ``setting`` asks for.

    Raises:
        CalibrationError: they do not.
    """
    if entry is None or entry.second_moment is None:
        raise CalibrationError(
            f"{setting} of '{linear}' needs statistics with second moments; "
            "make them with 'graphopt calibrate --second-moment'"
        )


@dataclass
class AttentionStatistics:
    """What an attention layer keeps of some tokens, and how much of its output comes from each.

    Attributes:
        keys: (tokens, Hkv, D) float16, rotated, as a cache holds them.
        values: (tokens, Hkv, Dv) float16.
        attention: (tokens, Hkv) float32, sum of p² over the queries and query heads that read a token with probability
            p: an error e of its value is a squared error of e² · attention in the outputs.
        key_attention: (tokens, Hkv) float32, sum of p² |v - y|² |scale · q|²: an error e of its key moves a score by
            scale · q · e and so, to first order, an output y by p (scale · q · e) (v - y). None in files from before
            it was measured.
        key_metric: (Hkv, D) float32, sum over all tokens of p² |v - y|² (scale · q)² by channel: what errors of all
            keys in one channel cost. None in files from before it was measured.
    """

    keys: np.ndarray
    values: np.ndarray
    attention: np.ndarray
    key_attention: np.ndarray | None = None
    key_metric: np.ndarray | None = None

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def damage(self) -> str | None:
        """What is wrong with the arrays, as the end of a sentence; None if they belong together and are finite."""
        parts = self.parts.values()
        costs = [array for array in (self.attention, self.key_attention) if array is not None]
        shapes = {array.shape[:2] for array in (self.keys, self.values)} | {array.shape for array in costs}
        if self.keys.ndim != 3 or self.values.ndim != 3 or len(shapes) != 1:
            return f"has keys and values of shapes {self.keys.shape} and {self.values.shape}"
        if self.key_metric is not None and self.key_metric.shape != self.keys.shape[1:]:
            return f"has keys of shape {self.keys.shape} and a metric of shape {self.key_metric.shape}"
        if not all(np.isfinite(array).all() for array in parts):
            return "has statistics that are not finite"
        return None


@dataclass
class Statistics:
    """Statistics by name of the canonical Linear and Attention nodes, with where they come from.

    Linears that read one input share one entry, in memory and in the file.
    """

    linears: dict[str, LinearStatistics] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    attentions: dict[str, AttentionStatistics] = field(default_factory=dict)

    def of(self, name: str, channels: int) -> LinearStatistics:
        """Return the statistics of linear ``name``, whose input has ``channels`` channels.

        Raises:
            CalibrationError: there are none, or they are of another model.
        """
        entry = self.linears.get(name)
        if entry is None:
            raise CalibrationError(
                f"the statistics have no linear '{name}' (they have {len(self.linears)} others); "
                "calibrate this very model"
            )
        if entry.channels != channels:
            raise CalibrationError(
                f"the statistics of '{name}' have {entry.channels} channels, the weight has {channels}; "
                "calibrate this very model"
            )
        return entry

    def save(self, path: Path) -> None:
        """Write an uncompressed .npz, atomically.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        arrays: dict[str, np.ndarray] = {}
        entries = list({id(e): e for e in self.linears.values()}.values())
        number = {id(e): i for i, e in enumerate(entries)}
        for i, entry in enumerate(entries):
            arrays[f"{i}.absmax"], arrays[f"{i}.mean_square"] = entry.absmax, entry.mean_square
            if entry.second_moment is not None:
                arrays[f"{i}.second_moment"] = entry.second_moment
        for i, layer in enumerate(self.attentions.values()):
            arrays |= {f"attention{i}.{part}": array for part, array in layer.parts.items()}
        header = {
            "graphopt_statistics": _FORMAT,
            "attentions": list(self.attentions),
            "attention_parts": [list(layer.parts) for layer in self.attentions.values()],
            "names": list(self.linears),
            "entries": [number[id(e)] for e in self.linears.values()],
            "tokens": [e.tokens for e in entries],
            "second_moments": [e.second_moment is not None for e in entries],
            "source": self.source,
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with replacing(path) as (partial,), partial.open("wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote; no pickles.

        Raises:
            CalibrationError: the file is missing, truncated, or not a statistics file.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                header = json.loads(bytes(data["header"]))
                source = dict(header["source"])
                if header.get("graphopt_statistics") != _FORMAT:
                    raise CalibrationError(
                        f"{path} has statistics format {header.get('graphopt_statistics')}, not "
                        f"{_FORMAT}; make it again with 'graphopt calibrate'"
                    )
                entries = [
                    LinearStatistics(
                        data[f"{i}.absmax"],
                        data[f"{i}.mean_square"],
                        int(tokens),
                        _moment(path, data, f"{i}.second_moment") if header["second_moments"][i] else None,
                    )
                    for i, tokens in enumerate(header["tokens"])
                ]
                # Files from before entries were shared have one for each name.
                numbers = header.get("entries", range(len(header["names"])))
                linears = {name: entries[i] for name, i in zip(header["names"], numbers, strict=True)}
                # Files from before costs of keys were measured do not say which parts they have.
                layers = header.get("attentions", [])
                parts = header.get("attention_parts", [["keys", "values", "attention"]] * len(layers))
                attentions = {
                    name: AttentionStatistics(**{part: data[f"attention{i}.{part}"] for part in parts[i]})
                    for i, name in enumerate(layers)
                }
        except FileNotFoundError as e:
            raise CalibrationError(f"statistics file {path} does not exist; make it with 'graphopt calibrate'") from e
        except _DAMAGE as e:
            raise CalibrationError(
                f"{path} is not a statistics file of 'graphopt calibrate', or it is truncated"
            ) from e
        for name, entry in (*linears.items(), *attentions.items()):
            if reason := entry.damage():
                raise CalibrationError(f"{path}: '{name}' {reason}; make it again with 'graphopt calibrate'")
        return cls(linears, source, attentions)


def _moment(path: Path, data: Any, name: str) -> np.ndarray:
    """Return the array ``name`` of the archive ``data`` at ``path``: mapped, if it is large."""
    member = data.zip.getinfo(f"{name}.npy")
    if member.file_size < _MAPPED_BYTES or member.compress_type != zipfile.ZIP_STORED:
        array: np.ndarray = data[name]
        return array
    with path.open("rb") as f:
        f.seek(member.header_offset)
        local_header = f.read(_LOCAL_HEADER)
        # The lengths of the name and of the extra field, which the archive's directory need not repeat.
        f.seek(sum(struct.unpack("<HH", local_header[-4:])), 1)
        version = np.lib.format.read_magic(f)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, fortran, dtype = read_header(f)
        return np.memmap(path, dtype, "r", f.tell(), shape, "F" if fortran else "C")
