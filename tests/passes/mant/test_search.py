"""The search against trying every candidate on every group, and what it is good for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.mant.rounding import Codec
from graphopt.passes.mant.search import CLIP_SHARES, Choice, choose
from graphopt.passes.mant.types import INT4_TYPE, MANT, NF4, TypeTable

#: The search ranks by a table whose rows are 1/2048 wide, so that candidates that are nearly the same may be mixed up.
NEARLY_BEST = 1.02


def random_groups(rng: np.random.Generator, n: int, groups: int, size: int = 64) -> np.ndarray:
    """Groups of different shapes and sizes; some of one huge value, some of zeros."""
    shapes = [
        rng.standard_normal,
        rng.laplace,
        lambda size: rng.standard_t(3, size),
        lambda size: rng.uniform(-1, 1, size),
    ]
    w = np.stack([shapes[g % 4](size=(n, size)) for g in range(groups)], axis=1)
    w *= 10.0 ** rng.uniform(-3, 1, (n, groups, 1))
    w[0, 0, 3] = 300 * np.abs(w[0, 0]).max()
    w[-1, -1] = 0
    return w.astype(np.float32)


def output_error(w: np.ndarray, table: TypeTable, choice: Choice, blocks: np.ndarray) -> np.ndarray:
    codec = Codec(table, choice)
    d = (codec.decode(codec.encode(w)) - w).astype(np.float64)
    return np.einsum("ngi,gij,ngj->ng", d, blocks, d)


def moments(rng: np.random.Generator, groups: int, size: int) -> np.ndarray:
    x = rng.standard_normal((groups, 3 * size, size)) + 3 * rng.standard_normal((groups, 3 * size, 1))
    x *= 10.0 ** rng.uniform(-1, 0.5, (groups, 1, size))
    return (x.swapaxes(1, 2) @ x / (3 * size)).astype(np.float32)


def exhaustive(w: np.ndarray, table: TypeTable, shares: tuple[float, ...], blocks: np.ndarray) -> np.ndarray:
    """(N, G): the least error of any type and share."""
    amax, best = np.abs(w).max(axis=2), np.full(w.shape[:2], np.inf)
    for type_id in table.ids:
        for share in shares:
            scales = (amax * np.float32(share) / table.largest[type_id]).astype(np.float16).astype(np.float32)
            choice = Choice(np.full(amax.shape, type_id, np.uint8), scales)
            best = np.minimum(best, output_error(w, table, choice, blocks))
    return best


@given(seed=st.integers(0, 2**32 - 1), clip=st.booleans(), table=st.sampled_from([MANT, NF4, MANT.rounded()]))
def test_weight_error_is_nearly_the_best_of_all(seed: int, clip: bool, table: TypeTable) -> None:
    w = random_groups(np.random.default_rng(seed), 3, 4, 32)
    identity = np.broadcast_to(np.eye(32, dtype=np.float32), (4, 32, 32))
    error = output_error(w, table, choose(w, table, clip=clip), identity)
    best = exhaustive(w, table, CLIP_SHARES if clip else (1.0,), identity)
    # A group with one huge value has all others within a row or two of the table: there only the huge one is judged.
    rest = np.ones(error.shape, bool)
    rest[0, 0] = False
    assert (error <= best * NEARLY_BEST + 1e-12)[rest].all()


@given(seed=st.integers(0, 2**32 - 1))
def test_output_error_is_nearly_the_best_of_all_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, blocks = rng.standard_t(4, (16, 4, 32)).astype(np.float32), moments(rng, 4, 32)
    importance = np.einsum("gii->gi", blocks)
    found = choose(w, MANT, importance=importance, blocks=blocks)
    best = exhaustive(w, MANT, (1.0,), blocks).sum()
    error = output_error(w, MANT, found, blocks).sum()
    by_weight = output_error(w, MANT, choose(w, MANT), blocks).sum()
    assert best * (1 - 1e-6) <= error
    assert error - best <= 0.3 * (by_weight - best)


def test_importance_decides() -> None:
    rng = np.random.default_rng(3)
    w = rng.laplace(size=(64, 2, 64)).astype(np.float32)
    importance = (10.0 ** rng.uniform(-2, 2, (2, 64))).astype(np.float32)
    blocks = np.stack([np.diag(m) for m in importance])
    weighted, plain = (output_error(w, MANT, choose(w, MANT, importance=m), blocks).sum() for m in (importance, None))
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("draw", ["standard_normal", "laplace", "standard_t", "uniform"])
def test_mant_beats_nf4_and_int4_on_every_distribution(draw: str) -> None:
    rng = np.random.default_rng(0)
    given_ = {"standard_t": (4,), "uniform": (-1, 1)}.get(draw, ())
    w = getattr(rng, draw)(*given_, size=(256, 4, 64)).astype(np.float32)
    identity = np.broadcast_to(np.eye(64, dtype=np.float32), (4, 64, 64))
    mant, nf4, int4 = (
        output_error(w, table, choose(w, table), identity).sum() for table in (MANT, NF4, MANT.only((INT4_TYPE,)))
    )
    assert mant < 0.95 * min(nf4, int4)


def test_groups_of_zeros_and_of_one_huge_value() -> None:
    w = np.zeros((2, 2, 64), np.float32)
    w[0, 0, 5], w[1, 1] = 1000.0, np.linspace(-1, 1, 64)
    w[1, 1, 0] = -3e4
    for table in (MANT, NF4, MANT.rounded()):
        choice = choose(w, table, clip=True)
        codec = Codec(table, choice)
        decoded = codec.decode(codec.encode(w))
        assert choice.scales[0, 1] == 0
        assert not decoded[0, 1].any()
        assert decoded[0, 0, 5] == pytest.approx(1000, rel=2e-3)
        assert decoded[1, 1, 0] == pytest.approx(-3e4, rel=2e-3)
