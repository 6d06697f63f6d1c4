"""Files that appear whole or not at all."""

__all__ = ["check_target", "replacing"]

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graphopt.errors import OutputError


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary name beside each of ``paths``; when the block ends well, all of them take their final names.

    If anything goes wrong, an interrupt included, the files that were there before are still there, all of them, and
    the temporary ones are gone. Every temporary file must exist when the block ends.

    Raises:
        OutputError: a folder is missing or not writable, a path is a folder or a device, or the disk is full.
    """
    for path in paths:
        check_target(path)
    partial = tuple(_hidden(p, "partial") for p in paths)
    try:
        yield partial
        _rename_all(partial, paths)
    except OSError as e:
        raise OutputError(f"cannot write {paths[0]}: {e.strerror or e}; nothing was changed") from e
    finally:
        for p in partial:
            with suppress(FileNotFoundError):
                p.unlink()


def check_target(path: Path) -> None:
    """Check that ``path`` can be written, before the work whose result goes there.

    Raises:
        OutputError: its folder is missing or not writable, or it is a folder or a device itself.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():  # a new file would take the place of /dev/null
        raise OutputError(f"cannot write {path}: it is a device or a pipe; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write into the folder {path.parent}")


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")


def _rename_all(sources: tuple[Path, ...], targets: tuple[Path, ...]) -> None:
    """Rename each source to its target; if one fails, put back what was there before."""
    # The last rename either happens or does not, so only the ones before it may have to be undone.
    before_last = targets[:-1]
    backups = {t: _hidden(t, "backup") for t in before_last if t.exists()}
    new = [t for t in before_last if t not in backups]
    try:
        for target, backup in backups.items():
            _keep(target, backup)
        for source, target in zip(sources, targets, strict=True):
            source.replace(target)
    except BaseException:
        for target, backup in backups.items():
            if backup.exists():
                backup.replace(target)
        for target in new:
            target.unlink(missing_ok=True)
        raise
    finally:
        for backup in backups.values():
            backup.unlink(missing_ok=True)


def _keep(target: Path, backup: Path) -> None:
    """Give ``target`` a second name, so that it never goes missing; where links are not supported, only the second."""
    try:
        os.link(target, backup)
    except OSError:
        target.replace(backup)
