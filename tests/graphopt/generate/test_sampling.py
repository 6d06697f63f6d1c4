import numpy as np
import pytest

from graphopt.errors import GraphOptError
from graphopt.generate import Sampler

DRAWS = 4000
#: Five standard deviations of a share over the draws.
SPREAD = 5 * 0.5 / DRAWS**0.5


def shares(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    return np.bincount([sampler.pick(logits) for _ in range(DRAWS)], minlength=len(logits)) / DRAWS


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max())
    return np.asarray(p / p.sum())


def test_temperature_0_takes_the_first_of_the_most_probable(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(50).astype(np.float32)
    logits[[7, 31]] = 9
    assert Sampler().pick(logits) == 7


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(rng: np.random.Generator, temperature: float) -> None:
    logits = rng.standard_normal(6).astype(np.float32)
    got = shares(Sampler(temperature, seed=1), logits)
    np.testing.assert_allclose(got, softmax(logits / temperature), atol=SPREAD)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    p = np.array([0.1, 0.5, 0.0625, 0.3, 0.0375])
    got = shares(Sampler(1.0, top_p=0.75, seed=2), np.log(p))
    assert set(np.flatnonzero(got)) == {1, 3}
    np.testing.assert_allclose(got[[1, 3]], [0.625, 0.375], atol=SPREAD)
    assert set(np.flatnonzero(shares(Sampler(1.0, top_p=0.4, seed=2), np.log(p)))) == {1}


@pytest.mark.parametrize("scale", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0 - 1e-12])
def test_a_large_vocabulary_is_not_sorted_but_drawn_from_alike(
    rng: np.random.Generator, scale: float, top_p: float
) -> None:
    """Each draw is the one among all tokens in the order of their probability."""
    logits = np.round(scale * rng.standard_normal(3000), 2)  # with equals
    sampler, draws = Sampler(1.0, top_p, seed=5), np.random.default_rng(5)
    p = np.exp(logits - logits.max())
    order = np.argsort(-p, kind="stable")
    cumulative = np.cumsum(p[order])
    last = np.searchsorted(cumulative, top_p * cumulative[-1])
    for _ in range(50):
        wanted = order[np.searchsorted(cumulative, draws.random() * cumulative[last], side="right")]
        assert p[sampler.pick(logits)] == p[wanted]


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 1.0], np.float32)
    assert set(np.flatnonzero(shares(Sampler(5.0), logits))) == {1, 3}


def test_a_small_temperature_does_not_overflow() -> None:
    assert Sampler(1e-6).pick(np.array([3.0, 3.5, -8.0], np.float32)) == 1


def test_equal_seeds_draw_equally(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(40).astype(np.float32)
    one, same, other = ([s.pick(logits) for _ in range(30)] for s in (Sampler(1, 0.9, n) for n in (3, 3, 4)))
    assert one == same != other


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(GraphOptError, match=r"must be .*, not "):
        Sampler(**settings)
