from hypothesis import given
from hypothesis import strategies as st

from graphopt.runners.spans import UNBOUNDED, Span, longest_call

ANY = (0, UNBOUNDED)


def span(seq: tuple[int, int], past: tuple[int, int] = ANY, total: tuple[int, int] = ANY) -> Span:
    return Span(seq, past, total, past)


def test_the_longest_call_is_the_longest_of_any_profile() -> None:
    spans = [span((4, 8), (0, 0)), span((1, 1))]
    assert longest_call(spans, 0, 20) == 8
    assert longest_call(spans, 0, 3) == 1
    assert longest_call(spans, 5, 20) == 1
    assert longest_call(spans[:1], 0, 3) is None
    assert longest_call(spans[:1], 1, 8) is None


def test_the_mask_bounds_old_and_new_tokens_together() -> None:
    assert longest_call([span((1, 8), total=(1, 10))], 7, 8) == 3
    assert longest_call([span((1, 8), total=(1, 10))], 10, 8) is None


sizes = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(st.builds(span, sizes, sizes, sizes), max_size=3), st.integers(0, 9), st.integers(1, 9))
def test_calls_fit_a_profile_and_no_longer_one_does(spans: list[Span], past: int, left: int) -> None:
    def fits(length: int) -> bool:
        sizes = (length, past, past + length)
        return any(all(a <= n <= b for n, (a, b) in zip(sizes, (s.seq, s.past, s.total), strict=True)) for s in spans)

    assert longest_call(spans, past, left) == max(filter(fits, range(1, left + 1)), default=None)
