"""What is stored of a weight: sizes, errors, that chunks of rows change nothing, and what is refused."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.canonical import LinearView
from graphopt.errors import ModelError
from graphopt.numerics.packing import packed_bytes
from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mant import ops, weight
from graphopt.passes.mant.config import MantConfig
from graphopt.passes.mant.weight import Calibration, QuantizedWeight, quantize_weight, table_of


def linear(w: np.ndarray) -> LinearView:
    x, y = gs.Variable("x", w.dtype, ["n", w.shape[1]]), gs.Variable("y", w.dtype, ["n", w.shape[0]])
    return LinearView(gs.Node("Linear", "lin", {"trans_w": 1}, [x, gs.Constant("w", w)], [y], domain="graphopt"))


def dequantized(stored: QuantizedWeight, config: MantConfig, k: int) -> np.ndarray:
    """The weight that the op computes with, by handing it the unit vectors."""
    table = np.nan_to_num(table_of(config).values).astype(np.float16)
    bias = np.zeros(len(stored.codes), np.float32)
    operands = (stored.codes, ops.pack_types(stored.ids), stored.scales, table, bias)
    (w,) = ops.LINEAR.evaluate(np.eye(k, dtype=np.float32), *operands, group=config.group)
    return w.T


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 77), (5, 33), (40, 64), (3, 200)])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("settings", [{}, {"types": "nf4"}, {"types": "int4"}, {"bits": "w4a8", "one_pass": True}])
def test_weights_of_any_shape(n: int, k: int, group: int, settings: dict[str, Any], rng: np.random.Generator) -> None:
    w = (rng.standard_t(5, (n, k)) / np.sqrt(k)).astype(np.float32)
    config = MantConfig(group=group, **settings)
    stored = quantize_weight(linear(w), config, Calibration())
    groups = -(-k // group)
    assert (stored.codes.dtype, stored.codes.shape) == (np.int8, (n, packed_bytes(k)))
    assert (stored.ids.shape, stored.scales.shape) == ((groups, n), (groups, n))
    assert stored.scales.dtype == np.float16
    assert set(np.unique(stored.ids)) <= set(table_of(config).ids)
    error = np.linalg.norm(dequantized(stored, config, k) - w) / np.linalg.norm(w)
    assert stored.error == pytest.approx(error, rel=1e-4, abs=1e-6)
    assert stored.output_error is None


def test_chunks_of_rows_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    w = rng.standard_t(5, (23, 130)).astype(np.float32)
    x = rng.standard_normal((300, 130))
    moment = SecondMoment((x.T @ x / 300).astype(np.float32), np.ones(130, bool), 0.01)
    for calibration in (Calibration(), Calibration(moment=moment)):
        whole = quantize_weight(linear(w), MantConfig(), calibration)
        with monkeypatch.context() as m:
            m.setattr(weight, "_CHUNK", 4 * 192)
            m.setattr(weight, "_GPTQ_CHUNK", 4 * 192)
            parts = quantize_weight(linear(w), MantConfig(), calibration)
        for name in ("codes", "ids", "scales"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
        assert parts.error == pytest.approx(whole.error)
        assert parts.output_error == (None if whole.output_error is None else pytest.approx(whole.output_error))


def test_small_weights_keep_their_precision(rng: np.random.Generator) -> None:
    """The scale of a type whose values reach 968 would be a subnormal float16 of a few bits."""
    w = rng.standard_normal((16, 256)).astype(np.float32)
    errors = [quantize_weight(linear(w * np.float32(size)), MantConfig(), Calibration()).error for size in (1, 1e-3)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def test_weights_beyond_float16_scales_are_refused(rng: np.random.Generator) -> None:
    w = rng.standard_normal((16, 64)).astype(np.float32)
    w[3, 7] = 3e4
    quantize_weight(linear(w), MantConfig(), Calibration())
    w[3, 7] = 4e4
    with pytest.raises(ModelError, match="'w' of 'lin' holds 4e\\+04"):
        quantize_weight(linear(w), MantConfig(), Calibration())


def test_weights_below_float16_scales(rng: np.random.Generator) -> None:
    """They would become zeros: some groups are counted, a whole weight is refused."""
    w = rng.standard_normal((16, 128)).astype(np.float32)
    w[2, 64:] = 0
    w[3:5, :64] *= np.float32(1e-9)
    assert quantize_weight(linear(w), MantConfig(group=64), Calibration()).vanished == 2
    assert quantize_weight(linear(w * np.float32(1e-6)), MantConfig(group=64), Calibration()).error < 0.2
    with pytest.raises(ModelError, match="'w' of 'lin' holds nothing above 3e-08"):
        quantize_weight(linear(w * np.float32(1e-9)), MantConfig(group=64), Calibration())


def test_weights_of_zeros() -> None:
    moment = SecondMoment(np.eye(70, dtype=np.float32), np.ones(70, bool), 0.01)
    for calibration in (Calibration(), Calibration(moment=moment)):
        stored = quantize_weight(linear(np.zeros((4, 70), np.float32)), MantConfig(), calibration)
        assert stored.error == (stored.output_error or 0.0) == 0.0
        assert not dequantized(stored, MantConfig(), 70).any()


def test_threads_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    w = rng.standard_t(5, (40, 130)).astype(np.float32)
    monkeypatch.setattr(weight, "_CHUNK", 3 * 192)
    found = []
    for threads in ("1", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(quantize_weight(linear(w), MantConfig(), Calibration()))
    for name in ("codes", "ids", "scales", "error"):
        np.testing.assert_array_equal(getattr(found[1], name), getattr(found[0], name))
