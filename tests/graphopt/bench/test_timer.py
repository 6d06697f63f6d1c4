"""How often what is run; and the statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.bench import timer
from graphopt.bench.timer import Timing, copies_for, repeats_for


@given(st.integers(1, 1 << 34))
def test_copies_cover_more_than_the_cache_unless_that_takes_too_many(size: int) -> None:
    copies = copies_for(size)
    assert 2 <= copies <= timer.MOST_COPIES
    assert copies == timer.MOST_COPIES or copies * size >= timer.BEYOND_L2


@given(st.integers(2, timer.MOST_COPIES), st.floats(0, 1e5))
def test_a_sample_calls_every_copy_equally_often(copies: int, us: float) -> None:
    calls = repeats_for(copies, us)
    assert calls % copies == 0
    assert copies <= calls <= timer.MOST_CALLS
    if calls + copies <= timer.MOST_CALLS and us > 0.1:
        assert calls * us >= timer.SAMPLE_US or calls == copies


def test_timing_is_the_median_and_ignores_a_straggler(rng: np.random.Generator) -> None:
    samples = rng.uniform(9.9, 10.1, 25)
    samples[3] = 500.0
    timing = Timing.of(list(samples))
    assert timing.us == pytest.approx(np.median(samples))
    assert 0 < timing.spread < 0.02
