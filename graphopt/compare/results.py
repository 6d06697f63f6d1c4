"""Result files: lists of rows in JSON, in which a new measurement replaces the old one of the same thing."""

__all__ = ["accuracy_row", "provenance", "record"]

import datetime
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import graphopt
from graphopt.compare.perplexity import PerplexityResult
from graphopt.errors import OutputError

#: Fields that say what an accuracy row measured; all others are the measurement.
ACCURACY_KEY = ("scheme", "kv", "tokens", "chunks")


def accuracy_row(result: PerplexityResult, *, scheme: str, kv: str, bits_per_weight: float | None) -> dict[str, Any]:
    """Return a row of benchmarks/results/accuracy/<model>.json; null stands for what was not measured."""
    return {
        "scheme": scheme,
        "kv": kv,
        "bits_per_weight": bits_per_weight,
        "ppl": result.ppl,
        "ppl_fp32": result.ppl_reference,
        "kl": result.kl,
        "top1_agreement": result.top1_agreement,
        "tokens": result.tokens,
        "chunks": result.chunks,
        **provenance(),
    }


def provenance() -> dict[str, str]:
    """Return the commit of the source (the version, for an installed package) and today's date (UTC)."""
    command = ["git", "-C", str(Path(graphopt.__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = done.stdout.strip()
    except OSError:  # no git here
        commit = ""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"commit": commit or f"v{graphopt.__version__}", "date": date}


def record(path: Path, row: dict[str, Any], key: Sequence[str] = ACCURACY_KEY) -> None:
    """Put ``row`` into the list in the JSON file ``path``, in place of the row with the same ``key`` fields.

    Raises:
        OutputError: the file holds something else, or cannot be written; it is left as it was.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError) as e:
        raise OutputError(f"{path} is not a JSON file of results; move it away or name another file") from e
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise OutputError(f"{path} is not a list of results; move it away or name another file")
    same = [i for i, r in enumerate(rows) if all(r.get(k) == row[k] for k in key)]
    kept = [r for i, r in enumerate(rows) if i not in same]
    kept.insert(same[0] if same else len(kept), row)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write results to {path}: {e.strerror or e}; nothing was written") from e
    finally:
        partial.unlink(missing_ok=True)
