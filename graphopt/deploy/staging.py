"""A folder that is complete or not there."""

__all__ = ["staging"]

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt.errors import OutputError


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes ``output`` if the block ends well, and goes away otherwise.

    Raises:
        OutputError: ``output`` exists or cannot be written; nothing was written.
    """
    if output.exists():
        raise OutputError(f"cannot write {output}: it exists; delete it, or give another folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as e:
        raise OutputError(f"cannot write {output}: {e.strerror or e}; nothing was written") from e
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(output)
    except OSError as e:
        raise OutputError(f"cannot write {output}: {e.strerror or e}; nothing was written") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
