import json
import re
from pathlib import Path

import pytest

from graphopt.compare.perplexity import PerplexityResult
from graphopt.compare.results import accuracy_row, record
from graphopt.errors import OutputError

#: The fields that every reader of benchmarks/results/accuracy expects.
FIELDS = [
    "scheme", "kv", "bits_per_weight", "ppl", "ppl_fp32", "kl", "top1_agreement", "tokens", "chunks", "commit", "date",
]  # fmt: skip


def _row(scheme: str = "mixq-w8a8", ppl: float = 20.5, chunks: int = 4) -> dict:
    result = PerplexityResult(ppl, (3.0,) * chunks, 511 * chunks, chunks, 20.0, 0.01, 0.97)
    return accuracy_row(result, scheme=scheme, kv="none", bits_per_weight=8.5)


def test_a_row_has_the_agreed_fields() -> None:
    row = _row()
    assert list(row) == FIELDS
    assert re.fullmatch(r"[0-9a-f]{12}|v.+", row["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
    assert (row["ppl"], row["ppl_fp32"], row["tokens"], row["bits_per_weight"]) == (20.5, 20.0, 2044, 8.5)


def test_rows_replace_their_own_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "accuracy" / "model.json"
    for row in (_row("fp"), _row(ppl=21.0), _row(ppl=22.0, chunks=8), _row(ppl=20.75)):
        record(path, row)
    rows = json.loads(path.read_text())
    assert [(r["scheme"], r["ppl"], r["chunks"]) for r in rows] == [
        ("fp", 20.5, 4),
        ("mixq-w8a8", 20.75, 4),
        ("mixq-w8a8", 22.0, 8),
    ]
    assert [p.name for p in path.parent.iterdir()] == ["model.json"]


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", b"\xff"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "other.json"
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    with pytest.raises(OutputError, match=r"other\.json is not .* of results"):
        record(path, _row())
    assert path.read_bytes() == raw


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.json"
    record(path, _row("fp"))
    before = path.read_bytes()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was written"):
        record(path, _row())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]
