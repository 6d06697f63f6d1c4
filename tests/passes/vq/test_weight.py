"""A linear's weight and back: what is stored decodes to what the errors say, for every VQ<v, b, r>."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.canonical import LinearView
from graphopt.passes.canonicalize import ops as canonical
from graphopt.passes.vq import e8, hadamard, numerics, weight
from graphopt.passes.vq.config import VQConfig
from graphopt.passes.vq.moments import ChannelMoment, VectorMoment
from graphopt.passes.vq.weight import QuantizedWeight, quantize_weight

Layer = tuple[np.ndarray, np.ndarray]


def linear_of(w: np.ndarray) -> LinearView:
    x = gs.Variable("x", np.float32, ["tokens", w.shape[1]])
    y = gs.Variable("y", np.float32, ["tokens", len(w)])
    return LinearView(canonical.LINEAR.node("lin", [x, gs.Constant("w", w)], [y], trans_w=1))


def decoded(stored: QuantizedWeight, config: VQConfig, columns: int) -> np.ndarray:
    positions = columns // config.vector
    codes = numerics.unpack_codes(stored.codes, config.bits, positions * config.residuals)
    codes = codes.reshape(len(codes), positions, config.residuals)
    if stored.codebooks is None:
        c = (e8.decode_points(codes) * np.array(e8.RATIOS, np.float32)[: config.residuals, None]).sum(axis=2)
        return c.reshape(len(c), -1) * stored.scale[:, None]
    assert stored.codebooks.dtype == np.float16
    return numerics.decode(codes, stored.codebooks, stored.tile_rows, stored.tile_columns) * stored.scale[:, None]


def normalized(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "settings",
    [
        {"vector": 4, "bits": 6, "tile": 32},
        {"vector": 2, "bits": 5, "residuals": 2, "tile": 0},
        {"vector": 8, "bits": 7, "residuals": 3, "tile": 48},
        {"vector": 16, "bits": 10, "tile": 0},
        {"vector": 4, "bits": 1, "residuals": 4, "tile": 16},
        {"vector": 2, "bits": 16, "tile": 0, "rounds": 1},
    ],
    ids=str,
)
def test_any_configuration(layer: Callable[[int, int], Layer], settings: dict[str, int]) -> None:
    w, m = layer(50, 45)
    config = VQConfig.model_validate(settings)
    moment = VectorMoment(m, config.vector, 0.01)
    stored = quantize_weight(linear_of(w), config, moment, None, np.random.default_rng(1))
    columns = len(moment.diagonal)
    got = decoded(stored, config, columns)
    exact = np.pad(w, ((0, 0), (0, columns - 45)))
    np.testing.assert_allclose(normalized(got, exact), stored.error, rtol=1e-3, atol=1e-5)
    outputs = [float(moment.squared_error(a).sum()) for a in (got - exact, exact)]
    np.testing.assert_allclose(np.sqrt(outputs[0] / outputs[1]), stored.output_error, rtol=1e-3, atol=1e-5)
    bits = config.bits * config.residuals / config.vector
    assert stored.output_error < 1.2 * 2.0**-bits, "about what a bit per weight buys"


@pytest.mark.parametrize("residuals", [1, 2])
def test_the_lattice(layer: Callable[[int, int], Layer], residuals: int) -> None:
    w, m = layer(40, 100)
    config = VQConfig.model_validate({"codebook": "e8", "residuals": residuals})
    rng = np.random.default_rng(2)
    signs, block = hadamard.random_signs(100, rng), hadamard.block_of(100)
    turned = hadamard.transform(hadamard.transform(m, signs, block).T, signs, block)
    moment = VectorMoment(turned, 8, 0.01)
    stored = quantize_weight(linear_of(w), config, moment, signs, rng)
    assert stored.codebooks is None
    got = decoded(stored, config, len(signs))
    np.testing.assert_allclose(normalized(got, hadamard.transform(w, signs, block)), stored.error, rtol=1e-3)
    assert stored.output_error < {1: 0.3, 2: 0.1}[residuals]


def test_strips_of_a_large_weight(layer: Callable[[int, int], Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Codebooks are trained on a part of the rows, and nearly as good on the others."""
    w, m = layer(300, 32)
    config = VQConfig(vector=4, bits=5, residuals=2, tile=0)
    moment = VectorMoment(m, 4, 0.01)
    whole = quantize_weight(linear_of(w), config, moment, None, np.random.default_rng(3))
    monkeypatch.setattr(weight, "_STRIP", 100 * 32)
    parts = quantize_weight(linear_of(w), config, moment, None, np.random.default_rng(3))
    exact = np.pad(w, ((0, 0), (0, 0)))
    np.testing.assert_allclose(normalized(decoded(parts, config, 32), exact), parts.error, rtol=1e-3)
    assert parts.output_error < 1.5 * whole.output_error


def test_constant_and_zero_rows(layer: Callable[[int, int], Layer]) -> None:
    w, m = layer(40, 32)
    w[3], w[5], w[7] = 0, 0.25, 1e-42
    moment = VectorMoment(m, 4, 0.01)
    config = VQConfig(vector=4, bits=6, tile=16)
    stored = quantize_weight(linear_of(w), config, moment, None, np.random.default_rng(4))
    got = decoded(stored, config, 32)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[3], 0)
    assert normalized(got[5], w[5]) < 0.3
    for constant in (np.zeros((8, 32), np.float32), np.full((8, 32), -3.5, np.float32)):
        stored = quantize_weight(linear_of(constant), config, moment, None, np.random.default_rng(4))
        np.testing.assert_allclose(decoded(stored, config, 32), constant, rtol=2e-3)
        assert max(stored.error, stored.output_error) < 2e-3


def test_small_codes_are_the_frequent_ones(layer: Callable[[int, int], Layer]) -> None:
    w, m = layer(64, 64)
    config = VQConfig(vector=4, bits=4, tile=32)
    stored = quantize_weight(
        linear_of(w), config, ChannelMoment(np.diagonal(m), 4, 0.01), None, np.random.default_rng(5)
    )
    codes = numerics.unpack_codes(stored.codes, 4, 16)
    for g in (0, 32):
        for h in (0, 8):
            counts = np.bincount(codes[g : g + 32, h : h + 8].reshape(-1), minlength=16)
            assert (np.diff(counts) <= 0).all()
