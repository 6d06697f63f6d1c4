"""What is stored of a weight: sizes, exact outliers, errors, and that chunks of rows change nothing."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.canonical import LinearView
from graphopt.numerics.packing import packed_bytes, unpack_int4
from graphopt.passes.mixq import numerics, weight
from graphopt.passes.mixq.config import MixQConfig
from graphopt.passes.mixq.rounding import SecondMoment
from graphopt.passes.mixq.weight import QuantizedWeight, quantize_weight

FOUR = MixQConfig(bits="w4a8")


def linear(w: np.ndarray) -> LinearView:
    x, y = gs.Variable("x", w.dtype, ["n", w.shape[1]]), gs.Variable("y", w.dtype, ["n", w.shape[0]])
    return LinearView(gs.Node("Linear", "lin", {"trans_w": 1}, [x, gs.Constant("w", w)], [y], domain="graphopt"))


def dequantized(stored: QuantizedWeight, k: int, indices: np.ndarray) -> np.ndarray:
    """The weight that a kernel computes with, outlier columns in place."""
    codes = stored.codes
    if stored.groups is not None:
        codes = numerics.grouped_codes(unpack_int4(codes, k), stored.groups, stored.group)
    w = codes * stored.scale[:, None]
    w[:, indices[indices >= 0]] = stored.outliers[:, : np.count_nonzero(indices >= 0)]
    return w


def random_weight(rng: np.random.Generator, n: int, k: int, dtype: Any = np.float32) -> np.ndarray:
    return (rng.standard_t(5, (n, k)) / np.sqrt(k)).astype(dtype)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 77), (5, 33), (24, 64), (3, 200)])
@pytest.mark.parametrize("group", [0, 64, 128])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_4_bit_weights_of_any_shape(n: int, k: int, group: int, dtype: Any, rng: np.random.Generator) -> None:
    w = random_weight(rng, n, k, dtype)
    indices = numerics.pad_indices(rng.choice(k, min(k // 2, 3), replace=False), 16)
    stored = quantize_weight(linear(w), indices, MixQConfig(bits="w4a8", group=group))
    assert stored.codes.shape == (n, packed_bytes(k))
    assert stored.groups is not None
    assert stored.groups.shape == (-(-k // group) if group else 1, n)
    assert stored.groups.shape[0] * stored.group >= k
    assert stored.outliers.dtype == dtype
    assert not unpack_int4(stored.codes, 2 * stored.codes.shape[1])[:, k:].any()
    assert not unpack_int4(stored.codes, k)[:, indices[indices >= 0]].any()
    np.testing.assert_array_equal(stored.outliers, numerics.gather_outliers(w, indices))
    difference = dequantized(stored, k, indices) - w.astype(np.float32)
    assert not difference[:, indices[indices >= 0]].any()
    error = np.linalg.norm(difference) / np.linalg.norm(w.astype(np.float32))
    assert stored.error == pytest.approx(error, rel=1e-5, abs=1e-9)
    assert stored.output_error is None
    assert stored.nbytes == n * (packed_bytes(k) + 4 + 16 * w.itemsize + stored.groups.shape[0])


def test_8_bit_weights_are_the_equations_of_the_paper(rng: np.random.Generator) -> None:
    w, indices = random_weight(rng, 20, 90), numerics.pad_indices(np.array([2, 80]), 16)
    stored = quantize_weight(linear(w), indices, MixQConfig())
    codes, scale, outliers = numerics.quantize_weight(w, indices)
    assert stored.groups is None
    np.testing.assert_array_equal(stored.scale, scale)
    np.testing.assert_array_equal(stored.outliers, outliers)
    # Values on the boundary between two codes may go either way: the inverse of the scale is rounded differently.
    assert np.abs(stored.codes.astype(int) - codes).max() <= 1
    assert np.count_nonzero(stored.codes != codes) <= 2


@pytest.mark.parametrize("second_order", [False, True])
def test_chunks_of_rows_change_nothing(
    second_order: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, indices = random_weight(rng, 50, 96), numerics.pad_indices(np.array([7]), 16)
    x = rng.standard_normal((200, 96)) @ rng.standard_normal((96, 96))
    inner = ~numerics.outlier_mask(indices, 96)
    moment = SecondMoment((x.T @ x / 200).astype(np.float32), inner, 0.01) if second_order else None
    whole = quantize_weight(linear(w), indices, FOUR, moment=moment)
    monkeypatch.setattr(weight, "_CHUNK_BYTES", 4 * 96 * 7)
    parts = quantize_weight(linear(w), indices, FOUR, moment=moment)
    if second_order:
        # Sums of other lengths round differently, and one code that changes moves those after it.
        assert parts.output_error == pytest.approx(whole.output_error, rel=0.02)
    else:
        np.testing.assert_array_equal(parts.codes, whole.codes)
        np.testing.assert_array_equal(parts.groups, whole.groups)
    np.testing.assert_array_equal(parts.scale, whole.scale)
    np.testing.assert_array_equal(parts.outliers, whole.outliers)


def test_output_error_is_that_of_the_calibration_data(rng: np.random.Generator) -> None:
    w, indices = random_weight(rng, 32, 80), numerics.pad_indices(np.array([3, 17]), 16)
    x = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 80)) + rng.standard_normal((300, 80))
    x[:, [3, 17]] *= 30
    moment = SecondMoment((x.T @ x / 300).astype(np.float32), ~numerics.outlier_mask(indices, 80), 0.01)
    stored = quantize_weight(linear(w), indices, FOUR, moment=moment)
    y, error = x @ w.T, x @ (dequantized(stored, 80, indices) - w).T
    assert stored.output_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(y), rel=1e-3)
    nearest = quantize_weight(linear(w), indices, FOUR)
    worse = np.linalg.norm(x @ (dequantized(nearest, 80, indices) - w).T)
    assert np.linalg.norm(error) < 0.8 * worse


@pytest.mark.parametrize("config", [MixQConfig(), FOUR, MixQConfig(bits="w4a8", group=0)])
def test_weights_of_zeros(config: MixQConfig) -> None:
    indices = numerics.pad_indices(np.zeros(0), 16)
    stored = quantize_weight(linear(np.zeros((4, 70), np.float32)), indices, config)
    assert not dequantized(stored, 70, indices).any()
    assert stored.error == 0


def test_clipping_spares_the_channels_that_matter(rng: np.random.Generator) -> None:
    """A channel with large inputs is clipped only as far as its errors cost less than those of the others."""
    w, indices = rng.standard_normal((24, 64)).astype(np.float32), numerics.pad_indices(np.zeros(0), 16)
    w[:, 5] *= 3
    importance = np.ones(64)
    importance[5] = 1e4
    config = MixQConfig(bits="w4a8", group=0, rounding="nearest", clip=True)
    weighted, plain = (
        dequantized(quantize_weight(linear(w), indices, config, importance=given), 64, indices) - w
        for given in (importance, None)
    )
    assert np.linalg.norm(weighted[:, 5]) < 0.8 * np.linalg.norm(plain[:, 5])
    assert (np.square(weighted) @ importance <= np.square(plain) @ importance * (1 + 1e-5)).all()


@pytest.mark.parametrize("config", [MixQConfig(), FOUR])
def test_inputs_that_were_never_anything_but_zero(config: MixQConfig, rng: np.random.Generator) -> None:
    w, indices = random_weight(rng, 4, 70), numerics.pad_indices(np.zeros(0), 16)
    moment = SecondMoment(np.zeros((70, 70), np.float32), np.ones(70, bool), 0.01)
    stored = quantize_weight(linear(w), indices, config, moment=moment)
    nearest = quantize_weight(linear(w), indices, config)
    np.testing.assert_array_equal(stored.codes, nearest.codes)
    assert stored.output_error == 0


def test_all_channels_may_be_outliers(rng: np.random.Generator) -> None:
    w, indices = random_weight(rng, 4, 16), np.arange(16, dtype=np.int32)
    moment = SecondMoment(np.eye(16, dtype=np.float32), np.zeros(16, bool), 0.01)
    stored = quantize_weight(linear(w), indices, FOUR, moment=moment)
    np.testing.assert_array_equal(stored.outliers, w)
    assert not stored.codes.any()
    assert stored.error == stored.output_error == 0


def test_threads_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    w, indices = random_weight(rng, 50, 96), numerics.pad_indices(np.array([7]), 16)
    monkeypatch.setattr(weight, "_CHUNK_BYTES", 4 * 96 * 7)
    found = []
    for threads in ("1", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(quantize_weight(linear(w), indices, FOUR))
    for name in ("codes", "groups", "scale", "outliers", "error"):
        np.testing.assert_array_equal(getattr(found[1], name), getattr(found[0], name))
