"""What engines did on a GPU is recorded once, and repeated as it is in NOTES.md and README.md."""

import importlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results/h100"


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("engine_record")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what is recorded."""
    for name in (
        "README.md",
        "benchmarks/NOTES.md",
        "benchmarks/results/accuracy/smollm2.json",
        *(f"{RESULTS}/{n}.json" for n in ("engine", "generate")),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / RESULTS / f"{name}.json").read_text())
    return found


def engine_row(scheme: str, label: str, phase: str, batch: int, us: float) -> dict[str, Any]:
    tokens, past = (2048, 0) if phase == "prefill" else (1, 2048)
    return {
        "suite": "engine", "scheme": scheme, "phase": phase, "B": batch, "M": batch * tokens, "us": us,
        "case": f"{label} {phase} B={batch} S={tokens} past={past}", "gpu": "NVIDIA H100 80GB HBM3", "driver": "580",
        "commit": "0123456789ab", "date": "2026-11-23", "measured": {},
    }  # fmt: skip


def test_pages_say_what_the_results_say(record: Any, root: Path) -> None:
    record.repeat(root, record.merged(rows(root, "engine"), []), rows(root, "generate"))
    for name in ("README.md", "benchmarks/NOTES.md"):
        assert (root / name).read_text() == (ROOT / name).read_text(), f"{name}: run python benchmarks/engine_record.py"


def test_a_hold_is_recorded(record: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever has been recorded by now, some of the new rows are to be new.
    kept = {
        "engine": [
            r
            for r in rows(root, "engine")
            if "4 layers decode" in r["case"] and not r["scheme"].startswith(("vq", "mant"))
        ],
        "generate": [r for r in rows(root, "generate") if r["scheme"] in ("none", "mixq-w8a8")],
    }
    for name, found in kept.items():
        (root / RESULTS / f"{name}.json").write_text(json.dumps(found))
    hold = tmp_path / "hold"
    hold.mkdir()
    new = [
        engine_row("mixq-w8a8", "llama-2-7b 4 layers", "decode", 1, 500.0),
        engine_row("vq-quip4+cq4", "llama-2-7b 4 layers", "decode", 1, 600.0),
        *(engine_row(s, "llama-2-7b 4 layers", "prefill", 1, us)
          for s, us in (("tensorrt_fp16", 1800), ("mixq-w8a8", 900))),
        *(engine_row(s, "llama-2-70b 1 layer", "decode", b, b * us)
          for s, us in (("tensorrt_fp16", 1600), ("mixq-w4a8", 400)) for b in (1, 16)),
    ]  # fmt: skip
    text = {"suite": "generate", "scheme": "vq-quip4+cq4", "case": "x", "ids": [1], "tokens": 1}
    text |= {"decode_tokens_s": 400.0, "runner": "r", "cache": "static", "commit": "0123456789ab"}
    texts = [text, {"suite": "perplexity", "scheme": "vq-quip4+cq4", "ppl": 23.1}]
    steps = [
        {"step": "a", "state": "done", "at": 1.0, "seconds": 2.0, "processor_seconds": 1.0, "states": {}, "note": ""}
    ]
    for name, data in (("engine", new), ("generate", texts), ("steps", steps)):
        (hold / f"{name}.json").write_text(json.dumps(data))
    (hold / "prompts.json").write_text(json.dumps({"prompts": []}))
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as archive:
        archive.add(hold, ".")
    monkeypatch.setattr(
        record, "judge", lambda found, files, prompts: [r.update(equal_tokens=1) for r in found if r in texts]
    )
    before = len(rows(root, "engine"))

    record.main([str(tmp_path / "all.tgz"), "none=a.onnx", "--texts", str(hold), "--root", str(root)])

    engines = rows(root, "engine")
    assert len(engines) == before + len(new) - 1
    (mine,) = (r for r in engines if r["scheme"] == "mixq-w8a8" and r["phase"] == "decode" and r["B"] == 1)
    assert mine["us"] == 500.0
    assert mine["peers"]["vq-quip4+cq4"] == 600.0
    assert [r["phase"] for r in engines if "2-7b" in r["case"]] == ["decode"] * (before + 1) + ["prefill"] * 2
    assert {r["scheme"] for r in rows(root, "generate")} == {"none", "mixq-w8a8", "vq-quip4+cq4"}
    readme, notes = (root / "README.md").read_text(), (root / "benchmarks/NOTES.md").read_text()
    head, *lines = (line.split(" | ") for line in readme[readme.index("| engine |") :].split("\n\n")[0].splitlines())
    table = {first.removeprefix("| "): dict(zip(head[1:], rest, strict=True)) for first, *rest in lines}
    assert table["MixQ w8a8"]["7B, prompt"] == "2.0×"
    assert [table["MixQ w4a8"].get(f"70B, B = {b}") for b in (1, 4, 16, 64)] == ["4.0×", None, "4.0×", None]
    assert [table[name]["SmolLM2 |"] for name in ("MixQ w8a8", "VQ quip4, cq4 cache")] == ["21.228 |", "23.100 |"]
    assert " | 900 (2.00×) | " in notes
    assert "| vq-quip4+cq4 | 23.100 | 23.265 | 400 | 1 of 1 | 0123456789ab |" in notes


@pytest.mark.parametrize(("later", "counts"), [(900.0, 900.0), (1100.0, 1000.0)])
def test_the_faster_baseline_counts_for_older_rows_too(record: Any, later: float, counts: float) -> None:
    def row(scheme: str, us: float) -> dict[str, Any]:
        return engine_row(scheme, "llama-2-7b 4 layers", "decode", 1, us)

    old = record.merged([], [row("tensorrt_fp16", 1000.0), row("mixq-w8a8", 400.0), row("vq-quip4", 500.0)])
    found = record.merged(old, [row("tensorrt_fp16", later), row("mixq-w8a8", 450.0)])
    assert {r["scheme"]: r["us"] for r in found} == {"tensorrt_fp16": counts, "mixq-w8a8": 450.0, "vq-quip4": 500.0}
    assert {r["peers"]["tensorrt_fp16"] for r in found if r["scheme"] != "tensorrt_fp16"} == {counts}


def test_a_changed_section_of_the_notes_is_not_guessed_at(record: Any) -> None:
    with pytest.raises(SystemExit, match="has 0 and 0 of its tables"):
        record.with_tables(f"\n{record.SECTION}\n\nnothing\n\n### Next\n", "a", "b")
