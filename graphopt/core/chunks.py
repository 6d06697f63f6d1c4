"""The rows of a weight in chunks, several at a time: what becomes of one row does not depend on another."""

__all__ = ["in_chunks"]

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from graphopt.core import jobs

Result = TypeVar("Result")


def in_chunks(rows: int, step: int, work: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
    """Yield each chunk of rows and what ``work`` makes of it, in order.

    Chunks are worked on by `graphopt.core.jobs.count` threads; numpy computes without the interpreter's lock. Neither
    chunks nor results depend on how many there are. Linear algebra runs in one thread meanwhile, so that not every
    thread starts as many again.

    Args:
        rows: to be divided.
        step: rows of a chunk, 1 or more; the last has what is left.
        work: called with the rows of a chunk, in any thread. What it raises ends the iteration.
    """
    chunks = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    threads = min(len(chunks), jobs.count())
    if threads <= 1:
        for chunk in chunks:
            yield chunk, work(chunk)
        return
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        try:
            for chunk, future in jobs.ahead(((chunk, pool.submit(work, chunk)) for chunk in chunks), threads):
                yield chunk, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
