"""Result files: lists of rows in JSON, in which a new measurement replaces the old one of the same thing."""

__all__ = ["accuracy_row", "record"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.compare.perplexity import PerplexityResult
from graphopt.errors import OutputError
from graphopt.results import provenance, write_rows

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
    write_rows(path, kept)
