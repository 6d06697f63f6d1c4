"""Watch a build and stop it: TensorRT's progress, and Ctrl-C while its C++ code runs."""

__all__ = ["BuildStep", "OnStep", "Watch"]

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from graphopt.engine.flavour import Flavour


@dataclass(frozen=True)
class BuildStep:
    """Progress of one phase of a build.

    Attributes:
        phase: TensorRT's name for it.
        parent: the phase it is part of, or None for the whole build.
        done: finished steps.
        total: all its steps; ``done == total`` is the last report of a phase.
    """

    phase: str
    parent: str | None
    done: int
    total: int


OnStep = Callable[[BuildStep], None]


class Watch:
    """Reports the steps of one build and makes Ctrl-C end it cleanly; use as a context manager around the build.

    Python delivers a signal only between its own instructions, and an exception inside a callback of TensorRT is lost;
    so the first Ctrl-C is noted, the next finished step tells TensorRT to cancel, and leaving the block raises
    KeyboardInterrupt. TensorRT 8 has no progress to report and ends at the next chance after its build.
    """

    def __init__(self, flavour: Flavour, on_step: OnStep | None = None) -> None:
        self._flavour = flavour
        self._on_step = on_step
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._previous: Any = None
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._main = threading.current_thread() is threading.main_thread()
        self.cancelled = False

    def __enter__(self) -> "Watch":
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._previous)
        if self._failure is not None:
            raise self._failure
        if self.cancelled and error is None:
            raise KeyboardInterrupt

    def attach(self, config: Any) -> None:
        """Make ``config`` report here."""
        if self._flavour.modern:
            self._monitor = self._make_monitor()
            config.progress_monitor = self._monitor

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.cancelled = True

    def _start(self, phase: str, parent: str | None, total: int) -> None:
        self._phases[phase] = (parent, total)
        self._report(phase, 0)

    def _finish(self, phase: str) -> None:
        if phase in self._phases:
            self._report(phase, self._phases[phase][1])
            del self._phases[phase]

    def _step(self, phase: str, step: int) -> bool:
        total = self._phases[phase][1] if phase in self._phases else 0
        # The last report of a phase is its end, so that a listener sees it once.
        self._report(phase, min(step + 1, max(total - 1, 0)))
        return not self.cancelled

    def _report(self, phase: str, done: int) -> None:
        if self._on_step is None or phase not in self._phases:
            return
        parent, total = self._phases[phase]
        with self._lock:
            if self._failure is not None:
                return
            try:
                self._on_step(BuildStep(phase, parent, done, total))
            except BaseException as e:
                self._failure = e
                self.cancelled = True

    def _make_monitor(self) -> Any:
        base, watch = self._flavour.trt.IProgressMonitor, self

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                watch._start(phase_name, parent_phase, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                watch._finish(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watch._step(phase_name, step)

        return Monitor()
