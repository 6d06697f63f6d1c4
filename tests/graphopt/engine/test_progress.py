"""Watching a build: phases, cancellation, and signals only where Python allows them."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import Messages
from graphopt.engine.progress import BuildStep, Watch


class Monitor:
    pass


def flavour(version: str = "10.14.1") -> Flavour:
    return Flavour("tensorrt", version, SimpleNamespace(IProgressMonitor=Monitor), Messages(), None)


def test_reports_phases_from_start_to_finish() -> None:
    steps: list[BuildStep] = []
    config = SimpleNamespace()
    with Watch(flavour(), steps.append) as watch:
        watch.attach(config)
        monitor = config.progress_monitor
        monitor.phase_start("all", None, 2)
        monitor.phase_start("part", "all", 3)
        assert monitor.step_complete("part", 0)
        monitor.phase_finish("part")
        assert monitor.step_complete("part", 1), "steps after the end are TensorRT's business"
        assert monitor.step_complete("all", 1)
        monitor.phase_finish("all")
    assert steps == [
        BuildStep("all", None, 0, 2),
        BuildStep("part", "all", 0, 3),
        BuildStep("part", "all", 1, 3),
        BuildStep("part", "all", 3, 3),
        BuildStep("all", None, 1, 2),
        BuildStep("all", None, 2, 2),
    ]


def test_interrupt_cancels_at_the_next_step() -> None:
    config = SimpleNamespace()
    with pytest.raises(KeyboardInterrupt), Watch(flavour()) as watch:
        watch.attach(config)
        config.progress_monitor.phase_start("all", None, 2)
        assert config.progress_monitor.step_complete("all", 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert not config.progress_monitor.step_complete("all", 1)


def test_an_error_of_the_build_wins_over_the_interrupt() -> None:
    with pytest.raises(RuntimeError, match="real"), Watch(flavour()):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("real")


def test_tensorrt_8_has_nothing_to_attach_to() -> None:
    config = SimpleNamespace()
    with Watch(flavour("8.6.1")) as watch:
        watch.attach(config)
    assert not vars(config)


def test_in_a_thread_signals_are_left_alone() -> None:
    handler = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def work() -> None:
        with Watch(flavour()):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [handler]
