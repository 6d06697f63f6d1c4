"""Named arrays in .npz files, as `graphopt run` reads and writes them."""

__all__ = ["read_npz", "write_npz"]

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.errors import EngineError
from graphopt.ir.files import replacing


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of ``path``; nothing in it is executed.

    Raises:
        EngineError: missing, or not an .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as e:
        raise EngineError(f"cannot read {path} as an .npz of arrays: {e}; write it with numpy.savez") from e


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``arrays``, replacing ``path`` atomically; bfloat16, which .npz cannot name, becomes float32.

    Raises:
        OutputError: it cannot be written.
    """
    plain = {
        name: a.astype(np.float32) if a.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn) else a
        for name, a in arrays.items()
    }
    # Names like "file" would collide with keyword arguments of savez, so the archive is written entry by entry.
    with replacing(path) as (partial,), zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, a in plain.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(a), allow_pickle=False)
