"""A hold of a lent GPU keeps its limits and its results, whatever the process that builds engines does."""

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

#: Answers steps as their scheme is called, without a TensorRT.
WORKER = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    verb, *_, name = json.loads(line)
    if name == "hangs":
        time.sleep(1000)
    if name == "dies":
        os.kill(os.getpid(), 11)
    if name == "fails":
        answer = {"error": "ValueError: no"}
    elif name == "slow":
        time.sleep(2)
        answer = {"rows": {}}
    elif name == "big":
        answer = {"rows": {"check": [{"text": "x" * 300000}]}}
    else:
        answer = {"rows": {"generate": [{"scheme": name, "process": os.getpid()}]}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("engine_hold")


@pytest.fixture
def take(hold: Any, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run a queue of texts; return the rows of steps.json by scheme."""
    (tmp_path / "text").mkdir()
    (tmp_path / "out").mkdir()

    def run(queue: str, *, models: str, until: float | None = None, worker: str = WORKER) -> dict[str, Any]:
        for name in models.split():
            (tmp_path / "text" / f"{name}.onnx").touch()
        (tmp_path / "text" / "done").touch()
        end = tmp_path / "until"
        if until is not None:
            end.write_text(str(time.time() + until))

        def start() -> Any:
            return hold.Worker([sys.executable, "-c", worker], tmp_path / "out/worker.log")

        hold.Hold(hold.steps_of(queue), tmp_path, tmp_path / "out", end, start).run()
        return {row["step"].split()[-1]: row for row in json.loads((tmp_path / "out/steps.json").read_text())}

    yield run


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "out" / f"{name}.json").read_text())
    return found


def test_a_queue(hold: Any) -> None:
    first, second = hold.steps_of(
        "10 90 time w1 prefill 1 mixq-w8a8 # comment\n\n# comment\n5 60 check decoder.decode\n"
    )
    assert (first.needs, first.limit, first.words) == (10, 90, ("time", "w1", "prefill", "1", "mixq-w8a8"))
    assert first.model(Path("w")) == Path("w/w1/mixq-w8a8.onnx")
    assert second.model(Path("w")) == Path("w/cases/decoder.decode.npz")


def test_steps_after_one_that_hangs_or_dies_run(take: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    names = "a hangs b dies fails c"
    found = take("\n".join(f"0 {1 if n == 'hangs' else 60} text {n}" for n in names.split()), models=names)
    states = {name: row["state"] for name, row in found.items()}
    assert states == {"a": "done", "hangs": "lost", "b": "done", "dies": "lost", "fails": "failed", "c": "done"}
    assert found["hangs"]["note"] == "stopped: it took too long"
    assert found["dies"]["note"] == f"died with {-signal.SIGSEGV}"
    assert found["fails"]["note"] == "ValueError: no"
    written = rows(tmp_path, "generate")
    assert [r["scheme"] for r in written] == ["a", "b", "c"]
    assert len({r["process"] for r in written}) == 3


def test_steps_that_need_more_than_is_left_are_skipped(take: Callable[..., dict[str, Any]]) -> None:
    found = take("30 60 text long\n1 60 text short", models="long short", until=20)
    assert found["long"]["state"] == "skipped"
    assert "s were left" in found["long"]["note"]
    assert found["short"]["state"] == "done"


def test_a_text_needs_what_the_one_before_took(take: Callable[..., dict[str, Any]]) -> None:
    found = take("0 60 text slow\n0 60 text a\n", models="slow a", until=3)
    assert (found["slow"]["state"], found["a"]["state"]) == ("done", "skipped")


def test_the_end_stops_a_step(take: Callable[..., dict[str, Any]]) -> None:
    began = time.monotonic()
    found = take("0 60 text hangs\n0 60 text a", models="hangs a", until=2)
    assert time.monotonic() - began < 10
    assert (found["hangs"]["state"], found["a"]["state"]) == ("lost", "skipped")


def test_a_model_that_was_not_made_is_skipped(take: Callable[..., dict[str, Any]]) -> None:
    found = take("0 60 text missing\n0 60 text a", models="a")
    assert (found["missing"]["state"], found["missing"]["note"]) == ("skipped", "no missing.onnx")
    assert found["a"]["state"] == "done"


def test_a_model_that_is_being_made_is_waited_for(hold: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "out").mkdir()
    late = "import sys, time; from pathlib import Path; time.sleep(1); f = Path(sys.argv[1]); (f / 'a.onnx').touch()"
    (tmp_path / "text/b.onnx").touch()
    maker = subprocess.Popen([sys.executable, "-c", late, str(tmp_path / "text")])
    steps = hold.steps_of("0 60 text a\n0 60 text b")
    hold.Hold(
        steps, tmp_path, tmp_path / "out", None, lambda: hold.Worker([sys.executable, "-c", WORKER], tmp_path / "log")
    ).run()
    maker.wait()
    assert [s.state for s in steps] == ["done", "done"]
    assert steps[1].at < steps[0].at


def test_answers_longer_than_a_pipe(take: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert take("0 60 text big", models="big")["big"]["state"] == "done"
    assert len(rows(tmp_path, "check")[0]["text"]) == 300000


def test_no_worker_ends_the_hold(take: Callable[..., dict[str, Any]]) -> None:
    found = take("0 60 text a", models="a", worker="raise SystemExit(3)")
    assert (found["a"]["state"], found["a"]["note"]) == ("skipped", "no worker")
