"""Codes that somebody else made, from the archive that 'graphopt model safetensors' writes of an AQLM checkpoint."""

__all__ = ["check_archive", "ready_weight"]

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from graphopt.core.canonical import LinearView
from graphopt.errors import ModelError
from graphopt.passes.vq import numerics
from graphopt.passes.vq.weight import QuantizedWeight

#: Rows of the weight that are compared with the codes, and how far off they may be: the model's type rounds them.
_CHECKED, _ROUNDING = 16, 2.0**-7
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def check_archive(path: Path, linears: Iterable[str]) -> set[str]:
    """Return those of ``linears`` that the archive ``path`` has codes of.

    Raises:
        ModelError: it is missing or damaged, or of a model whose linears have other names.
    """
    with _opened(path) as archive:
        ready = {name for name in linears if f"{name}:codes" in archive}
    if not ready:
        raise ModelError(
            f"{path} has codes of none of the linears that the recipe gives it; write model and archive together"
        )
    return ready


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except FileNotFoundError as e:
        raise ModelError(f"the archive of codes {path} does not exist") from e
    except (*_DAMAGE, KeyError) as e:
        raise ModelError(f"{path} is no archive of codes of 'graphopt model safetensors', or it is truncated") from e


def ready_weight(linear: LinearView, path: Path) -> QuantizedWeight:
    """Return the codes of ``linear`` in the archive ``path``, which has them.

    Raises:
        ModelError: the archive is missing or damaged, a code is beyond its codebook, or the codes are of another
            weight than that of the linear.
    """
    with _opened(path) as archive:
        codes, books, scale = (archive[f"{linear.name}:{part}"] for part in ("codes", "codebooks", "scale"))
    n, k = linear.shape
    if books.ndim != 3 or books.shape[2] not in numerics.VECTORS:
        raise ModelError(f"{path}: codebooks of '{linear.name}' have shape {books.shape}, not (r, 2^b, v)")
    residuals, entries, v = books.shape
    bits = max(1, (entries - 1).bit_length())
    if entries != 1 << bits or bits > numerics.MAX_BITS or codes.shape != (n, -(-k // v), residuals):
        raise ModelError(
            f"{path}: codes of shape {codes.shape} and codebooks of shape {books.shape} do not fit the ({n}, {k}) "
            f"weight of '{linear.name}'"
        )
    if codes.max() >= entries:
        raise ModelError(f"{path}: code {codes.max()} of '{linear.name}' is beyond the {entries} entries of a codebook")
    columns = codes.shape[1] * v
    rows = min(n, _CHECKED)
    decoded = numerics.decode(codes[:rows], books[None, None], n, columns)[:, :k] * scale[:rows, None]
    exact = linear.rows(0, rows).astype(np.float32)
    error = float(np.linalg.norm(decoded - exact))
    if not error <= _ROUNDING * float(np.linalg.norm(exact)):
        raise ModelError(
            f"{path}: the codes of '{linear.name}' are of another weight; write model and archive together, and set "
            "'arrange' of a cache in codes to false: it changes the weights of queries and keys"
        )
    return QuantizedWeight(
        codes=numerics.pack_codes(codes.reshape(n, -1), bits),
        codebooks=books[None, None].astype(np.float16),
        scale=scale.astype(np.float32),
        bits=bits,
        residuals=residuals,
        tile_rows=n,
        tile_columns=columns,
        error=error / (float(np.linalg.norm(exact)) or 1.0),
        output_error=0.0,
    )
