"""Work in several processes: order, bounds, errors, and what is left when one of them or all are ended."""

import operator
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from graphopt.core.processes import Mapped, in_processes
from graphopt.errors import OutputError, WorkerError

#: Quantizes without end in two processes, from a script without a main guard, and says when it has begun.
ENDLESS = """
import sys, time
from functools import partial
from graphopt.core.processes import in_processes
endless = partial(time.sleep, 600)
with in_processes([("a", partial(int, 1)), ("b", endless), ("c", endless)], 2) as results:
    next(results)
    print("begun", flush=True)
    next(results)
"""


def done(tasks: Iterable[tuple[str, Callable[[], Any]]], processes: int) -> list[Any]:
    with in_processes(tasks, processes) as results:
        return list(results)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_in_order(processes: int) -> None:
    tasks = [(str(i), partial(divmod, i, 3)) for i in range(7)]
    assert done(tasks, processes) == [divmod(i, 3) for i in range(7)]


def test_in_other_processes_with_one_thread_each() -> None:
    tasks = [(str(i), partial(os.getenv, "OPENBLAS_NUM_THREADS")) for i in range(2)] + [("pid", os.getpid)]
    *threads, other = done(tasks, 2)
    assert threads == ["1", "1"]
    assert other != os.getpid()


def test_tasks_are_taken_as_processes_are_free() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[tuple[str, Callable[[], int]]]:
        for i in range(50):
            taken.append(i)
            yield str(i), partial(int, i)

    with in_processes(tasks(), 2) as results:
        assert next(results) == 0
        assert len(taken) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_tasks_are_made_with_one_thread(processes: int) -> None:
    made: list[set[int]] = []

    def tasks() -> Iterator[tuple[str, Callable[[], int]]]:
        for i in range(2):
            made.append({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
            yield str(i), partial(int, i)

    np.dot(np.ones((8, 8)), np.ones((8, 8)))
    with threadpool_limits(2, user_api="blas"):
        assert done(tasks(), processes) == [0, 1]
    assert made == [{1}, {1}]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_task_is_the_callers(processes: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        done([("good", partial(int, 1)), ("bad", partial(int, "x")), ("last", partial(int, 2))], processes)


def test_a_killed_process_is_an_error_that_names_the_task() -> None:
    with pytest.raises(WorkerError, match=r"worked on 'w0'.*use fewer with --jobs"):
        done([("w0", partial(signal.raise_signal, signal.SIGKILL)), ("w1", partial(int, 1))], 2)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-f", "-P", str(pid), "popen_loky"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(ending: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; a killed parent can say nothing to them."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None and parent.stderr is not None
    assert parent.stdout.readline() == "begun\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    if ending == signal.SIGINT:
        os.killpg(parent.pid, ending)
    else:
        parent.send_signal(ending)
    parent.wait(timeout=20)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    if ending == signal.SIGINT:
        said = parent.stderr.read()
        assert said.count("Traceback") == 1, said  # the parent's alone
    parent.stdout.close()
    parent.stderr.close()


def test_arrays_are_mapped_from_one_file_that_goes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    value = {"a": np.arange(3000, dtype=np.float32).reshape(30, 100), "b": np.arange(5), "c": np.zeros((2, 0))}
    shared = Mapped(value)
    assert list(tmp_path.iterdir()) == [], "nothing is written before a process asks for it"
    copies = [pickle.loads(pickle.dumps(shared)) for _ in range(2)]
    assert len(list(tmp_path.iterdir())) == 1
    for copy in copies:
        for name, array in value.items():
            np.testing.assert_array_equal(copy.value[name], array)
        assert not copy.value["a"].flags.writeable
    del shared
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(copies[0].value["a"], value["a"])


def test_another_process_reads_what_is_mapped() -> None:
    shared = Mapped(np.arange(5000.0))
    read = partial(operator.attrgetter("value"), shared)
    tasks = [(str(i), read) for i in range(3)]
    for found in done(tasks, 2):
        np.testing.assert_array_equal(found, shared.value)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    tasks = [("a", partial(operator.attrgetter("value"), Mapped(np.arange(5000.0))))] * 2
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        done(tasks, 2)
