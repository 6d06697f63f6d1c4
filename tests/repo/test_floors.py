"""The table of floors counts the rows that reach them, and names those that miss."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("floors")
    sys.modules.pop("floors")


def row(m: int, us: float, **more: object) -> dict[str, object]:
    peers = {"torch_fp16": 100.0, "torch_int4": 30.0}
    same = {"case": "linear", "scheme": "mixq-w4a8", "dtype": "float16", "N": 4096, "K": 4096, "peers": peers}
    return same | {"M": m, "us": us} | more


def test_a_row_below_its_floor_is_named(floors: Any, tmp_path: Path) -> None:
    rows = [row(1, 25.0), row(16, 50.0), row(512, 1.0), row(1, 1e6, dtype="bfloat16"), row(1, 1e6, case="gemm")]
    (tmp_path / "mixq.json").write_text(json.dumps(rows))
    lines = {line.split(" | ")[0]: line for line in floors.floor_table(tmp_path)}
    assert lines["| MixQ w4a8, M ≤ 16"].endswith(
        "2.50× | 3.50× | 2.00× | 4.00× | 1 of 2 | w4a8, 4096 × 4096, M = 16: 2.00× |"
    )
    assert lines["| MixQ w4a8 against torch int4"].endswith(
        "0.60× | 30.00× | 2 of 3 | w4a8, 4096 × 4096, M = 16: 0.60× |"
    )
    assert not any("w8a8" in line for line in lines)


def test_rows_without_the_peers_time_are_counted(floors: Any, tmp_path: Path) -> None:
    """A floor that nothing was measured for is a line, too."""
    (tmp_path / "mixq.json").write_text(json.dumps([row(1, 25.0, peers={}), row(4096, 25.0), row(2048, 9.0, peers={})]))
    lines = {line.split(" | ")[0]: line for line in floors.floor_table(tmp_path)}
    assert lines["| MixQ w4a8, M ≤ 16"].endswith(
        "| 3.50× |  |  | 0 of 0 | 1 not judged, as torch_fp16 was not timed there |"
    )
    assert lines["| MixQ w4a8, M ≥ 2048"].endswith("1 of 1 | 1 not judged, as torch_fp16 was not timed there |")


def test_shares_are_of_the_floor_of_the_row(floors: Any, tmp_path: Path) -> None:
    rows = [
        {"case": op, "scheme": "mixq-w8a8", "M": 4096, "K": 8192, "us": 10.0, "floor_us": floor, "peers": {}}
        for op, floor in (("MixQLayerNorm", 7.9), ("MixQGelu", 8.0))
    ]
    (tmp_path / "mixq_quantize.json").write_text(json.dumps(rows))
    *_, line = floors.floor_table(tmp_path)
    assert line.endswith("80% | 92% | 79% | 80% | 1 of 2 | LayerNorm, 8192, M = 4096: 79% |")


def test_a_folder_without_results_has_no_table(floors: Any, tmp_path: Path) -> None:
    assert list(floors.floor_table(tmp_path)) == []


def test_rows_of_an_engine_and_of_a_cache_are_found(floors: Any, tmp_path: Path) -> None:
    decode = {"case": "decode", "scheme": "kv-cq4", "Hkv": 8, "peers": {"torch_fp16": 30.0}, "us": 10.0}
    kept = [decode | {"B": 8, "S": 4096}]
    (tmp_path / "attention.json").write_text(
        json.dumps([*kept, decode | {"B": 1, "S": 4096}, decode | {"B": 8, "S": 512}])
    )
    engine = {"case": "prefill", "phase": "prefill", "bits": 8, "B": 1, "us": 10.0, "peers": {"tensorrt_fp16": 12.0}}
    rows = [engine | {"scheme": "mixq-w8a8", "M": 2048}, engine | {"scheme": "tensorrt_fp16", "bits": 16, "M": 2048}]
    (tmp_path / "engine.json").write_text(json.dumps(rows))
    cache, prefill = list(floors.floor_table(tmp_path))[2:]
    assert cache.endswith("3.00× | 3.00× | 1 of 1 |  |")
    assert prefill.endswith("1.20× | 1.20× | 0 of 1 | mixq-w8a8, prefill: 1.20× |")


@pytest.mark.parametrize("file", ["mixq", "mixq_quantize", "vq", "mant", "attention", "engine"])
def test_every_floor_of_a_committed_suite_is_judged(floors: Any, file: str) -> None:
    path = BENCHMARKS / f"results/h100/{file}.json"
    rows = json.loads(path.read_text())
    unjudged = [f.what for f in floors.FLOORS if f.file == file and all(f.reached(row) is None for row in rows)]
    prefill = {f"engines, prefill of 2048 tokens, {bits} bits" for bits in (4, 8)}
    assert set(unjudged) <= prefill  # until its rows are measured
