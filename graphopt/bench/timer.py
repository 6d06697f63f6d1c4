"""The one timer of kernels: replays of a CUDA graph between events."""

__all__ = ["Timing", "copies_for", "median_us", "repeats_for"]

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphopt.bench.capi import torch_with_cuda

SAMPLES = 25
WARM_UP = 5
#: Bytes that the buffers of one measurement cover together: four times the 50 MB of L2 of an H100.
BEYOND_L2 = 200 << 20
MOST_COPIES = 64
#: Work of one sample, in microseconds: long beside the events' resolution of half a microsecond.
SAMPLE_US = 2000.0
MOST_CALLS = 256


@dataclass(frozen=True)
class Timing:
    """Median time of a call in microseconds and the interquartile range of the samples over it."""

    us: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """Summarize samples in microseconds."""
        low, middle, high = statistics.quantiles(samples, n=4)
        return cls(middle, (high - low) / middle)


def copies_for(bytes_each: int) -> int:
    """Return how many sets of buffers of ``bytes_each`` to rotate among, so that none is found in L2."""
    return max(2, min(MOST_COPIES, math.ceil(BEYOND_L2 / bytes_each)))


def repeats_for(copies: int, estimate_us: float) -> int:
    """Return how many calls one sample makes: every copy the same number of times, about SAMPLE_US in all."""
    rounds = math.ceil(SAMPLE_US / (max(estimate_us, 0.1) * copies))
    return copies * max(1, min(rounds, MOST_CALLS // copies))


def median_us(calls: Sequence[Callable[[], object]], *, graph: bool = True) -> Timing:
    """Time one call of ``calls``, made in turn on copies of the buffers.

    Args:
        calls: each enqueues the same work on the current stream.
        graph: replay them as a CUDA graph; without, the time includes what the host needs to enqueue them.
    """
    torch = torch_with_cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # allocations, kernel loading and attributes are not part of a graph
            call()
        repeat = repeats_for(len(calls), _elapsed_us(calls[0]))

        def run() -> None:
            for i in range(repeat):
                calls[i % len(calls)]()

        replay = run
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                run()
            replay = captured.replay
        samples = [_elapsed_us(replay) / repeat for _ in range(WARM_UP + SAMPLES)]
    return Timing.of(samples[WARM_UP:])


def _elapsed_us(work: Callable[[], object]) -> float:
    """Return the time between events around ``work`` on the current stream, in microseconds."""
    torch = torch_with_cuda()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3
