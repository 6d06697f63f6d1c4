"""Engine after engine in the minutes for which a GPU is lent: every step has a limit, every result is written at once.

    python benchmarks/engine_hold.py run QUEUE --work FOLDER --out FOLDER [--until FILE] [--driver TEXT]

QUEUE has one step a line: the seconds that it needs at least, those after which it is stopped, and what to do:

    time FOLDER PHASE BATCHES SCHEME     build and time layers that engine.py's `make` wrote to WORK/FOLDER
    build FOLDER PHASE BATCHES SCHEME    only build them
    check CASE                           WORK/cases/CASE.npz of engine_cases.py
    text SCHEME                          text and perplexity by WORK/text/SCHEME.onnx of generate.py's `make`; prompts
                                         and chunks of its `prepare` are in WORK/prepared

One process keeps a builder, for which TensorRT 8 loads 3 GB of kernels, and takes the steps in their order, those whose
model is being written (WORK/FOLDER has no file `done` yet) later. If it hangs or dies, the step is lost and the next
process goes on behind it. All is at TensorRT's optimization level 0 but the baseline, which gets its own choice.
OUT gets engine.json, check.json and generate.json, and steps.json, which says what became of each step: when it began,
its seconds, those of the processor, and how often the process was seen running (R), waiting (S) and in the kernel (D).
Nothing begins that needs more time (a text: as much as the last one took) than is left until the time in --until, a
file with seconds since the epoch, to be put there whole.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.results import write_rows

LEVEL = 0
TOKENS = 64
#: Seconds that a process may take to load TensorRT's kernels, and a pause of TensorRT's that is worth a line.
START_LIMIT, PAUSE = 90.0, 0.25
#: Between looks at a process.
LOOK = 0.1

Row = dict[str, Any]


# -- the process with the builder


class Pauses(logging.Handler):
    """Writes what TensorRT said before and after it was silent for a while."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.DEBUG)
        self._file, self._last, self._before = file, time.monotonic(), ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message of TensorRT's."""
        now, text = time.monotonic(), " ".join(record.getMessage().split())
        if now - self._last > PAUSE:
            line = f"{time.strftime('%H:%M:%S')} + {now - self._last:5.2f} {self._before[:120]} -> {text[:120]}\n"
            with self._file.open("a") as file:
                file.write(line)
        self._last, self._before = now, text


def build_or_time(work: Path, verb: str, folder: str, phase: str, batches: str, name: str) -> dict[str, list[Row]]:
    import engine

    model, cases = engine.Model(work / folder), engine.cases_of(phase, [int(b) for b in batches.split(",")])
    plan = engine.build_phase(name, phase, cases, model, LEVEL)
    if plan is None:
        raise RuntimeError("no plan; the log says why")
    try:
        found = engine.time_plan(plan, cases, model.inputs(name), name) if verb == "time" else {}
    finally:
        plan.unlink()
    level = None if name == engine.BASELINE else LEVEL
    return {"engine": [{**row, "level": level} for row in engine.rows_of(name, phase, found, model.label)]}


def check(work: Path, case: str) -> dict[str, list[Row]]:
    import engine

    model = work / "cases" / f"{case.rpartition('.')[0]}.onnx"
    return {"check": engine.check_case(work / "cases" / f"{case}.npz", model, work, LEVEL)}


def text(work: Path, name: str) -> dict[str, list[Row]]:
    import generate
    import numpy as np

    generate.build(argparse.Namespace(folder=work / "text", schemes=name, level=LEVEL))
    prompts = json.loads((work / "prepared/prompts.json").read_text())["prompts"]
    chunks = np.load(work / "prepared/chunks.npy").astype(np.int64)
    plan = work / "text" / f"{name}.plan"
    try:
        return {"generate": generate.rows_of(name, plan, prompts, chunks, TOKENS)}
    finally:
        plan.unlink()


def take(arguments: argparse.Namespace, step: Sequence[str], common: Row) -> dict[str, list[Row]]:
    """The rows of one step, by the file that they belong to."""
    verb, *rest = step
    if verb == "check":
        return check(arguments.work, *rest)
    found = text(arguments.work, *rest) if verb == "text" else build_or_time(arguments.work, verb, *rest)
    return {name: [{**row, **common} for row in rows] for name, rows in found.items()}


def work(arguments: argparse.Namespace) -> None:
    """Answer each line of standard input, a step, with a line: rows, or an error. All other output is the log."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with the process that asks
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import engine

    messages = logging.getLogger("graphopt.engine.messages")
    messages.setLevel(logging.DEBUG)
    messages.addHandler(Pauses(arguments.out / "pauses.txt"))
    engine.keep_builder()
    common = engine.measured_by(arguments.driver)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        try:
            answer = {"rows": take(arguments, json.loads(line), common)}
        except Exception as e:
            traceback.print_exc()
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")


# -- the process that asks


class EndedError(Exception):
    """The process was stopped, or died."""


class Worker:
    """A process that answers steps.

    Args:
        command: its arguments.
        log: a file that gets its other output.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output)
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)
        self._unread = b""
        self.states: Counter[str] = Counter()

    def answer(self, left: Callable[[], float]) -> Row:
        """Wait for the next answer.

        Args:
            left: seconds that are left to wait; asked again and again.

        Raises:
            EndedError: none came in time, and the process was killed; or it died.
        """
        self.states.clear()
        while b"\n" not in self._unread:
            if left() <= 0:
                self.end()
                raise EndedError("stopped: it took too long")
            if self._answers.select(LOOK):
                chunk = os.read(self._process.stdout.fileno(), 1 << 20)
                if not chunk:
                    raise EndedError(f"died with {self._process.wait()}")
                self._unread += chunk
            else:
                self.states[self._stat()[0]] += 1
        line, _, self._unread = self._unread.partition(b"\n")
        found: Row = json.loads(line)
        return found

    def ask(self, step: Sequence[str]) -> None:
        """Hand over a step.

        Raises:
            EndedError: the process has died.
        """
        try:
            self._process.stdin.write(json.dumps(list(step)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as e:
            raise EndedError(f"died with {self._process.wait()}") from e

    def processor_seconds(self) -> float:
        """Of all its threads."""
        stat = self._stat()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") if len(stat) > 12 else 0.0

    def _stat(self) -> list[str]:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return ["?"]

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


@dataclass
class Step:
    """A line of the queue, and what became of it."""

    needs: float
    limit: float
    words: tuple[str, ...]
    state: str = "waiting"
    at: float | None = None
    seconds: float = 0.0
    processor_seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def model(self, work: Path) -> Path:
        """The file that it needs."""
        verb, *rest = self.words
        if verb == "check":
            return work / "cases" / f"{rest[0]}.npz"
        return work / "text" / f"{rest[0]}.onnx" if verb == "text" else work / rest[0] / f"{rest[-1]}.onnx"

    def row(self) -> Row:
        """As it is written."""
        words = {"step": " ".join(self.words)}
        return words | {k: v for k, v in vars(self).items() if k not in ("words", "needs", "limit")}


def steps_of(queue: str) -> list[Step]:
    """Read a queue."""
    lines = (line.partition("#")[0].split() for line in queue.splitlines())
    return [Step(float(needs), float(limit), tuple(words)) for needs, limit, *words in filter(None, lines)]


class Hold:
    """Takes steps until they or the time are used up.

    Args:
        steps: what to do.
        work: folder of the models.
        out: folder of the results.
        until: file with the time at which to end, which may come later; without it there is no end.
        start: makes a worker.
    """

    def __init__(
        self, steps: list[Step], work: Path, out: Path, until: Path | None, start: Callable[[], Worker]
    ) -> None:
        self._steps, self._work, self._out, self._until, self._start = steps, work, out, until, start
        self._began = time.time()
        self._rows: dict[str, list[Row]] = {}
        self._worker: Worker | None = None
        self._failed_starts = 0

    def left(self) -> float:
        """Seconds until the end."""
        if self._until is None or not self._until.exists():
            return float("inf")
        return float(self._until.read_text()) - time.time()

    def run(self) -> None:
        """Take all steps that there is time for."""
        while (steps := [s for s in self._steps if s.state == "waiting"]) and self.left() > 0:
            if not self._ready():
                continue
            step = next((s for s in steps if self._begins(s)), None)
            if step is not None:
                self._take(step)
            elif any(s.state == "waiting" for s in steps):
                time.sleep(LOOK)  # for a model
            self._write()
        for step in (s for s in self._steps if s.state == "waiting"):
            step.state = "skipped"
        self._write()
        if self._worker is not None:
            self._worker.end()

    def _ready(self) -> bool:
        """Whether there is a worker; after two that did not come up, no step is left."""
        if self._worker is not None:
            return True
        began, worker = time.monotonic(), self._start()
        try:
            worker.answer(lambda: min(START_LIMIT - (time.monotonic() - began), self.left()))
        except EndedError as e:
            self._failed_starts += 1
            print(f"{self._second():6.1f} no worker: {e}", flush=True)
            if self._failed_starts > 1:
                for step in (s for s in self._steps if s.state == "waiting"):
                    step.state, step.note = "skipped", "no worker"
            return False
        print(f"{self._second():6.1f} worker ready after {time.monotonic() - began:.1f} s", flush=True)
        self._worker = worker
        return True

    def _begins(self, step: Step) -> bool:
        """Whether a step can begin now; those that never can are marked."""
        # Plans of texts take as long as each other, which is not known before the first.
        texts = [s.seconds for s in self._steps if s.state == "done" and "text" == s.words[0] == step.words[0]]
        if max([step.needs, *texts]) > self.left():
            step.state, step.note = "skipped", f"{self.left():.0f} s were left"
            return False
        model = step.model(self._work)
        written = (model.parent / "done").exists()  # asked before the model is, which may appear between both
        if model.exists():
            return True
        if written:
            step.state, step.note = "skipped", f"no {model.name}"
        return False

    def _take(self, step: Step) -> None:
        worker = self._worker
        if worker is None:
            raise RuntimeError("no worker")
        began, before = time.monotonic(), worker.processor_seconds()
        step.state, step.at = "begun", round(self._second(), 1)
        self._write()
        print(f"{step.at:6.1f} {' '.join(step.words)}", flush=True)
        try:
            worker.ask(step.words)
            answer = worker.answer(lambda: min(step.limit - (time.monotonic() - began), self.left()))
        except EndedError as e:
            step.state, step.note, self._worker = "lost", str(e), None
        else:
            step.processor_seconds = round(worker.processor_seconds() - before, 1)
            step.state, step.note = ("failed", answer["error"]) if "error" in answer else ("done", "")
            for name, rows in answer.get("rows", {}).items():
                self._rows.setdefault(name, []).extend(rows)
        step.seconds, step.states = round(time.monotonic() - began, 1), dict(worker.states)
        print(f"{self._second():6.1f} {step.state} after {step.seconds} s {step.note}", flush=True)

    def _second(self) -> float:
        return time.time() - self._began

    def _write(self) -> None:
        for name, rows in self._rows.items():
            write_rows(self._out / f"{name}.json", with_peers(rows) if name == "engine" else rows)
        write_rows(self._out / "steps.json", [step.row() for step in self._steps])


def with_peers(rows: list[Row]) -> list[Row]:
    import engine

    peers: list[Row] = engine.with_peers(rows)
    return peers


def run(arguments: argparse.Namespace) -> bool:
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "work", "--work", str(arguments.work), "--out", str(arguments.out)]
    command += ["--driver", arguments.driver]
    steps = steps_of(arguments.queue.read_text())

    def start() -> Worker:
        worker = Worker(command, arguments.out / "worker.log")
        importlib.import_module("engine")  # seconds, which are over before the worker has loaded its kernels
        return worker

    Hold(steps, arguments.work, arguments.out, arguments.until, start).run()
    for step in steps:
        print(f"{step.state:8} {step.at or 0:6.1f} {step.seconds:6.1f} {' '.join(step.words)} {step.note}")
    return all(step.state == "done" for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "work"):
        verb = verbs.add_parser(name)
        if name == "run":
            verb.add_argument("queue", type=Path)
            verb.add_argument("--until", type=Path)
        verb.add_argument("--work", type=Path, required=True)
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--driver", default="", help="version of the GPU's driver, for the results")
    arguments = parser.parse_args()
    if arguments.verb == "work":
        work(arguments)
    else:
        sys.exit(0 if run(arguments) else 1)


if __name__ == "__main__":
    main()
