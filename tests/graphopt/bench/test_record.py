"""Rows of results: the agreed fields, and files that are whole or untouched."""

import json
from pathlib import Path

import pytest

from graphopt.bench.record import Row, write
from graphopt.bench.timer import Timing

#: Those of performance results; a run adds gpu, driver, cuda, commit and date.
FIELDS = [
    "suite",
    "case",
    "scheme",
    "M",
    "N",
    "K",
    "C",
    "us",
    "spread",
    "floor_us",
    "bytes",
    "ops",
    "dtype",
    "peers",
    "missing",
]
SHARED = {"gpu": "H", "driver": "1", "cuda": "13.0", "commit": "abc", "date": "2026-01-01"}


def _row(n: int | None = 64) -> Row:
    return Row.of(
        Timing(10.004, 0.01234), 5.0, suite="mixq", case="linear", shape=(16, n, 128, 32), moved=7, ops=9,
        peers={"torch_fp16": 20.123}, missing={"bitsandbytes_int8": "not installed"},
    )  # fmt: skip


def test_a_row_has_the_agreed_fields(tmp_path: Path) -> None:
    path = tmp_path / "h100" / "mixq.json"
    write(path, [_row(), _row(None)], SHARED)
    first, second = json.loads(path.read_text())
    assert list(first) == FIELDS + list(SHARED)
    assert (first["us"], first["spread"], first["peers"]) == (10.0, 0.012, {"torch_fp16": 20.12})
    assert "N" not in second
    assert first["scheme"] == "mixq-w8a8"
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_share_of_the_floor() -> None:
    assert _row().share == pytest.approx(0.5)
