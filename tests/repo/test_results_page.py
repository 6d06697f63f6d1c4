"""The page of results says what the result files say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks/page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_engines_and_texts_have_their_tables(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"gpu": "GPU", "driver": "1", "commit": "c", "date": "d"}
    engine = {"scheme": "mixq-w8a8", "phase": "decode", "us": 500.0, "peers": {"tensorrt_fp16": 900.0}}
    small, large = (
        engine | {"case": "7b decode B=1", "B": 1},
        engine | {"case": "70b decode B=16", "B": 16, "us": 750.0},
    )
    text = {
        "suite": "generate", "scheme": "mixq-w8a8", "runner": "TensorRT", "cache": "static", "tokens": 64,
        "decode_tokens_s": 1000.0,
    }  # fmt: skip
    texts = [
        text | {"equal_tokens": 64},
        text | {"equal_tokens": 9, "margin": 0.25, "noise": 0.125},
        {"suite": "perplexity", "scheme": "mixq-w8a8", "ppl": 21.5},
    ]
    (tmp_path / "h100").mkdir()
    for name, rows in (("engine", [small, large]), ("generate", texts)):
        (tmp_path / "h100" / f"{name}.json").write_text(json.dumps([r | common for r in rows]))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    lines = "\n".join(page.sections()).splitlines()
    tables = {lines[i - 2]: lines[i + 2] for i, line in enumerate(lines) if line.startswith("| engine |")}
    assert tables == {"7b:": "| mixq-w8a8 | 500 (1.80×) | c |", "70b:": "| mixq-w8a8 | 750 (1.20×) | c |"}
    assert "| mixq-w8a8 | TensorRT | static | 1 of 2 | 0.25 (0.12) | 1,000 | 21.500 | c |" in lines
