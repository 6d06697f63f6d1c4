"""Chunks of rows: order, boundaries, threads, and what happens when one fails."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from graphopt.core.chunks import in_chunks


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")


@given(rows=st.integers(0, 40), step=st.integers(1, 12), threads=st.integers(1, 6))
def test_every_row_once_and_in_order(rows: int, step: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(threads))
        seen = list(in_chunks(rows, step, lambda at: list(range(rows)[at])))
    assert [row for _, found in seen for row in found] == list(range(rows))
    assert all(found == list(range(rows)[at]) for at, found in seen)
    assert all(len(found) == step for _, found in seen[:-1])


@pytest.mark.usefixtures("four_threads")
def test_as_many_at_once_as_asked_for() -> None:
    """Four chunks wait for each other: with fewer threads none would ever get through."""
    together = threading.Barrier(4)
    assert [at.start for at, _ in in_chunks(8, 1, lambda at: together.wait(timeout=20))] == list(range(8))


@pytest.mark.usefixtures("four_threads")
def test_one_chunk_stays_in_the_callers_thread() -> None:
    assert list(in_chunks(8, 8, lambda at: threading.get_ident())) == [(slice(0, 8), threading.get_ident())]


@pytest.mark.usefixtures("four_threads")
def test_an_error_ends_it_and_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def work(at: slice) -> None:
        begun.append(at.start)
        if at.start == 1:
            raise ValueError("chunk 1")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="chunk 1"):
        list(in_chunks(1000, 1, work))
    assert len(begun) < 20


@pytest.mark.usefixtures("four_threads")
def test_results_that_nobody_takes_do_not_pile_up() -> None:
    begun: list[int] = []
    walk = in_chunks(1000, 1, lambda at: begun.append(at.start))
    next(walk)
    time.sleep(0.2)
    assert len(begun) <= 5
    walk.close()
    assert len(begun) <= 5


@pytest.mark.usefixtures("four_threads")
def test_linear_algebra_in_one_thread_and_as_before_afterwards() -> None:
    def blas() -> set[int]:
        np.dot(np.ones((8, 8)), np.ones((8, 8)))
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = blas()
    assert all(found == {1} for _, found in in_chunks(8, 1, lambda at: blas()))
    assert blas() == before
