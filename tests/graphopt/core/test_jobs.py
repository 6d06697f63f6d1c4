"""How many work at a time: what was asked for, the environment, the processors, in that order."""

import pytest

from graphopt.core import jobs


@pytest.mark.parametrize(("told", "expected"), [("0", 5), ("-3", 5), ("many", 5), ("", 5), ("3,2", 3), ("96", 16)])
def test_the_environment_and_the_processors(monkeypatch: pytest.MonkeyPatch, told: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(5)))
    assert jobs.count() == expected


def test_what_is_asked_for_wins_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with jobs.at_most(40):
        assert jobs.count() == 40
        with jobs.at_most(None):
            assert jobs.count() == 3
    assert jobs.count() == 3
