"""``graphopt.json`` of a folder that a server starts from: what it was made of, and the digest of every file."""

__all__ = ["FORMAT", "MANIFEST", "check_files", "write_manifest"]

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import graphopt
from graphopt.engine.digest import sha256
from graphopt.errors import DeployError

MANIFEST = "graphopt.json"
#: Version of that file's format; a reader refuses another one.
FORMAT = 1


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Describe all files below ``folder`` in its manifest."""
    files = {
        p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    data = {"format": FORMAT, "graphopt": graphopt.__version__, **about, "files": files}
    (folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def check_files(folder: Path, *complete: str) -> dict[str, Any]:
    """Compare a folder with its manifest.

    Args:
        folder: what `write_manifest` described.
        complete: folders inside it, below which no other files may be.

    Returns:
        The manifest.

    Raises:
        DeployError: a file is missing, changed or too much, or there is no manifest.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise DeployError(f"{path} has format {data['format']}, this graphopt reads {FORMAT}")
        expected = {str(name): str(entry["sha256"]) for name, entry in data["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DeployError(f"{folder} has no readable {MANIFEST}; write the folder again") from e
    for name, digest in expected.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise DeployError(f"{path} names '{name}', which is not in the folder")
        if not (folder / relative).is_file():
            raise DeployError(f"{folder / relative} is missing")
        if sha256(folder / relative) != digest:
            raise DeployError(f"{folder / relative} was changed since the folder was written")
    for found in sorted(p for name in complete for p in (folder / name).rglob("*")):
        name = found.relative_to(folder).as_posix()
        if found.is_file() and name not in expected and "__pycache__" not in found.parts:
            raise DeployError(f"{found} does not belong to the folder")
    return dict(data)
