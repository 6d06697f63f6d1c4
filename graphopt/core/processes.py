"""Work for several processes, where threads do not help because numpy holds the interpreter's lock.

Workers are fresh interpreters of loky: scripts need no ``if __name__ == "__main__"``, a worker that is killed is an
error instead of a wait, and what is in work can be ended at once.
"""

__all__ = ["Mapped", "in_processes"]

import importlib.util
import mmap
import os
import pickle
import signal
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from itertools import starmap
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Generic, TypeVar

from threadpoolctl import threadpool_limits

from graphopt.core.jobs import ahead
from graphopt.errors import OutputError, WorkerError

T = TypeVar("T")
Result = TypeVar("Result")
#: The name that errors have for a task, and the task.
Task = tuple[str, Callable[[], Result]]

#: Read by libraries of linear algebra when they are loaded.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: Seconds after which a worker sees that its parent was killed.
_WATCH = 1.0


@contextmanager
def in_processes(tasks: Iterable[Task[Result]], processes: int) -> Iterator[Iterator[Result]]:
    """Work on tasks while the context lasts; inside is an iterator over what they return, in their order.

    A task is taken from ``tasks`` when a process is free for it, so that no more of them, and of results, are in memory
    than there are processes, and one. Linear algebra runs in one thread, in ``tasks`` too: results do not depend on how
    many processes there are, and these have the processors. A context that ends early kills the processes.

    Args:
        tasks: names and functions that pickle.
        processes: 1 to work in this one.

    Raises:
        WorkerError: a process was killed.
        Exception: as a task raised it.
    """
    # GPU hosts have a copy of our sources without the packages that these need.
    if processes <= 1 or importlib.util.find_spec("loky") is None:
        yield _here(tasks)
        return
    from loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, initializer=_watch_parent, initargs=(os.getpid(),), env=_ONE_THREAD)
    finished = False
    try:
        yield _results(pool, processes, tasks)
        finished = True
    finally:
        with warnings.catch_warnings():
            # Of a host without pgrep, for children of the processes: they have none.
            warnings.filterwarnings("ignore", "Failed to kill subprocesses")
            pool.shutdown(kill_workers=not finished)


def _taken(tasks: Iterable[Task[Result]]) -> Iterator[Task[Result]]:
    iterator = iter(tasks)
    while True:
        with threadpool_limits(1, user_api="blas"):
            task = next(iterator, None)
        if task is None:
            return
        yield task


def _here(tasks: Iterable[Task[Result]]) -> Iterator[Result]:
    for _, work in _taken(tasks):
        with threadpool_limits(1, user_api="blas"):
            result = work()
        yield result


def _results(pool: Any, processes: int, tasks: Iterable[Task[Result]]) -> Iterator[Result]:
    # With the tasks, so that the files that they map stay; neither they nor results do longer than they must.
    return starmap(_result, ahead(_started(pool, tasks), processes))


def _started(pool: Any, tasks: Iterable[Task[Result]]) -> Iterator[tuple[Task[Result], "Future[Result]"]]:
    for task in _taken(tasks):
        # Here and not in the pool's thread, which would hide what goes wrong.
        pickled = pickle.dumps(task[1])
        with _uninterrupted():
            future = pool.submit(_unpickled, pickled)
        yield task, future


def _result(task: Task[Result], future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenExecutor:
        raise WorkerError(
            f"a process was killed while it or one beside it worked on '{task[0]}', most likely for want of memory; "
            "use fewer with --jobs"
        ) from None


def _unpickled(pickled: bytes) -> Any:
    return pickle.loads(pickled)()


class _uninterrupted:  # noqa: N801 (reads as a verb)
    """Processes that start inside do not hear Ctrl-C, which a terminal sends to all: the parent ends them."""

    def __enter__(self) -> None:
        resource_tracker.ensure_running()  # which would lift the block when the first process starts it
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _watch_parent(parent: int) -> None:
    """End this process when its parent has ended without a word."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Mapped(Generic[T]):
    """A value with large arrays, which other processes map from one file instead of copying them.

    The file is written when the first of them needs it, and deleted with this object.

    Attributes:
        value: in other processes its arrays are read-only.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self._file: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file is None:
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps(self.value, protocol=5, buffer_callback=buffers.append)
            self._file, self._parts = self._written(buffers)
            self._head = head
        return _mapped, (self._file, self._head, self._parts)

    def _written(self, buffers: list[pickle.PickleBuffer]) -> tuple[Path, list[tuple[int, int]]]:
        parts = []
        try:
            number, name = tempfile.mkstemp(prefix="graphopt-")
            self._finalizer = weakref.finalize(self, Path(name).unlink, missing_ok=True)
            with os.fdopen(number, "wb") as file:
                for buffer in buffers:
                    raw = buffer.raw()
                    file.seek(-(-file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
                    parts.append((file.tell(), raw.nbytes))
                    file.write(raw)
        except OSError as e:
            raise OutputError(
                f"cannot share statistics with other processes in {tempfile.gettempdir()}: {e.strerror or e}; set "
                "TMPDIR to a folder with more room, or use --jobs 1"
            ) from e
        return Path(name), parts


def _mapped(file: Path, head: bytes, parts: list[tuple[int, int]]) -> Mapped[Any]:
    with file.open("rb") as opened:
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if parts else b""
    view = memoryview(whole)
    return Mapped(pickle.loads(head, buffers=[view[start : start + size] for start, size in parts]))
