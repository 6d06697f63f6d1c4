"""Checkpoints of AQLM (Egiazarian et al., "Extreme Compression of Large Language Models via Additive Quantization").

A quantized linear ``name.weight`` is stored as ``name.codes`` (N, K / v, r) integers whose bit patterns are unsigned,
``name.codebooks`` (r, 2^b, 1, v) and ``name.scales`` (N, 1, 1, 1):

    W[n, v j + e] = scales[n] · Σ_i codebooks[i, codes[n, j, i], 0, e]

A builder gets the decoded weights, so that the model is a decoder like any other. The codes themselves go into an
archive beside it, from which the scheme 'vq' takes them as they are.
"""

__all__ = ["ARCHIVE", "AqlmWeights", "is_aqlm"]

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError
from graphopt.ir.files import replacing
from graphopt.models.safetensors_weights import SafetensorsWeights

#: Name of the archive in a model's folder.
ARCHIVE = "codes.npz"


def is_aqlm(folder: str | os.PathLike[str]) -> bool:
    """Whether ``config.json`` in ``folder`` says that the checkpoint is AQLM's."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == "aqlm")
    except (OSError, ValueError, KeyError, TypeError):
        return False


class AqlmWeights:
    """A `WeightSource` of an AQLM checkpoint: quantized linears come decoded, in float32.

    Args:
        folder: as `SafetensorsWeights` takes it.

    Raises:
        ModelError: a file is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._stored = SafetensorsWeights(folder)
        self.config = self._stored.config

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return the weight ``name``.

        Raises:
            ModelError: it is missing, or its codes, codebooks and scales do not fit each other.
        """
        stem = name.removesuffix(".weight")
        if f"{stem}.codes" not in self._stored.names:
            return self._stored.tensor(name)
        codes, codebooks, scales = self._operands(stem)
        weight = np.zeros((*codes.shape[:2], codebooks.shape[2]), np.float32)
        for i, book in enumerate(codebooks.astype(np.float32)):
            weight += book[codes[:, :, i]]
        return weight.reshape(len(codes), -1) * scales[:, None]

    def save_codes(self, path: Path) -> None:
        """Write the archive: for every quantized linear, by its name in the model that our builder writes, arrays
        ``<name>:codes`` (N, J, r) uint16, ``<name>:codebooks`` (r, 2^b, v) float16 and ``<name>:scale`` (N,) float32.

        Raises:
            ModelError: as `tensor`.
            OutputError: the file cannot be written; nothing is left behind.
        """
        stems = [n.removesuffix(".codes") for n in self._stored.names if n.endswith(".codes")]
        arrays = {}
        for stem in stems:
            linear = f"/{re.sub(r'[.](?![0-9])', '/', stem)}/MatMul"
            for part, array in zip(("codes", "codebooks", "scale"), self._operands(stem), strict=True):
                arrays[f"{linear}:{part}"] = array
        with replacing(path) as (partial,), partial.open("wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]

    def _operands(self, stem: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        signed = self._stored.integers(f"{stem}.codes")
        codebooks, scales = (self._stored.tensor(f"{stem}.{part}") for part in ("codebooks", "scales"))
        if codebooks.ndim != 4 or codebooks.shape[2] != 1:
            raise ModelError(
                f"'{stem}.codebooks' has shape {list(codebooks.shape)}; only groups of one output channel can be read"
            )
        residuals, entries, _, _ = codebooks.shape
        if signed.ndim != 3 or signed.shape[2] != residuals or scales.size != len(signed):
            raise ModelError(
                f"'{stem}' has codes of shape {list(signed.shape)}, but {residuals} codebooks and {scales.size} scales"
            )
        codes = signed.astype(np.int64) % (1 << 8 * signed.dtype.itemsize)
        # Codes of 9 to 15 bits are sign-extended to 16.
        codes %= 1 << (entries - 1).bit_length()
        if codes.size and codes.max() >= entries:
            raise ModelError(f"'{stem}.codes' holds {codes.max()}, beyond its {entries} entries; the file is damaged")
        return codes.astype(np.uint16), codebooks[:, :, 0].astype(np.float16), scales.astype(np.float32).reshape(-1)
