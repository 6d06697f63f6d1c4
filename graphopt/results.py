"""Result files: where their rows come from, and how they are written."""

__all__ = ["ENVIRONMENT", "provenance", "write_rows"]

import datetime
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import graphopt
from graphopt.errors import OutputError

#: Names the commit where the sources are a copy without their history, as on a GPU host.
ENVIRONMENT = "GRAPHOPT_COMMIT"


def provenance() -> dict[str, str]:
    """Return the commit of the source (the version, for an installed package) and today's date (UTC)."""
    commit = os.environ.get(ENVIRONMENT, "")
    if not commit:
        command = ["git", "-C", str(Path(graphopt.__file__).parent), "rev-parse", "--short=12", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            commit = done.stdout.strip()
        except OSError:  # no git here
            commit = ""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"commit": commit or f"v{graphopt.__version__}", "date": date}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list in place of the file ``path``.

    Raises:
        OutputError: it cannot be written; what the file held is still there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write results to {path}: {e.strerror or e}; nothing was written") from e
    finally:
        if partial.exists():
            partial.unlink()
