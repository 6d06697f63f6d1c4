"""Every sign on values that have it and, as far as one can tell, no other."""

from dataclasses import replace

import numpy as np
import pytest

from graphopt.compare.causes import Evidence, likely_cause
from graphopt.compare.metrics import DifferenceMeter, Tolerance
from tests.support.arrays import activations, weight


@pytest.fixture
def same(rng: np.random.Generator) -> Evidence:
    """A float32 layer that does not differ."""
    x = activations(rng, 12, 64)
    return measured(x, x @ weight(rng, 64, 16))


def measured(x: np.ndarray, reference: np.ndarray, ours: np.ndarray | None = None, **known: object) -> Evidence:
    meter = DifferenceMeter("y", Tolerance())
    ours = reference if ours is None else ours
    meter.update(ours, reference)
    return Evidence(ours, reference, x, "float32", None, meter.result(), **known)  # type: ignore[arg-type]


def test_another_shape(same: Evidence) -> None:
    cause = likely_cause(replace(same, ours=same.ours[:, :8]))
    assert cause == "its shape is [12, 8], not [12, 16]: the graphs differ before it"


def test_an_input_that_is_broken_already(same: Evidence) -> None:
    assert same.x is not None
    x = same.x.copy()
    x[3, 5] = np.nan
    assert "its input already holds NaN or Inf in the reference" in likely_cause(replace(same, x=x))


def test_values_beyond_float16(same: Evidence) -> None:
    half = replace(same, dtype="float16")
    large = replace(half, reference=same.reference * np.float32(7e4), ours=np.full_like(same.ours, np.inf))
    assert "its output reaches" in likely_cause(large)
    assert "beyond float16's 65504" in likely_cause(large)
    assert same.x is not None
    assert "its input reaches" in likely_cause(replace(half, x=same.x * np.float32(7e4)))
    assert "float16" not in likely_cause(replace(large, dtype="bfloat16"))


def test_rows_that_overflowed(same: Evidence) -> None:
    ours = same.ours.copy()
    ours[[2, 7]] = np.inf
    ours[7, 3] = np.nan
    assert "NaN or Inf in 2 of 12 rows, out of finite inputs" in likely_cause(replace(same, ours=ours))


def test_outliers_outside_the_set(same: Evidence, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 64)).astype(np.float32)
    x[:, [9, 33]] *= 60
    x[5, 50] = 200
    partly = replace(same, x=x, outliers=np.array([9, 33]))
    rms = np.sqrt((x.astype(np.float64) ** 2).mean())
    assert 200 / rms > 6
    assert (
        f"1 channel of its input beyond 6 rms is outside its set of 2 outliers (channel 50: {200 / rms:.1f} rms)"
        in (likely_cause(partly))
    )
    covered = replace(partly, outliers=np.array([9, 33, 50]))
    assert "quantization alone, with no outlier outside its set" in likely_cause(covered)


def test_a_quantized_weight(same: Evidence) -> None:
    coded = measured_again(same, 1.1, weight_bits=4.0625)
    assert "its weight has 4.06 bits (normalized error 0.1): give it more bits" in likely_cause(coded)
    assert same.x is not None
    flat = replace(coded, int8_input=True, x=np.clip(same.x, -1, 1))
    assert "its weight has 4.06 bits and its input 8 (normalized error 0.1)" in likely_cause(flat)


def test_outliers_of_a_scheme_that_keeps_none_out(same: Evidence, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 64)).astype(np.float32)
    x[5, 50] = 200
    cause = likely_cause(replace(measured_again(same, 1.1, weight_bits=4.0, int8_input=True), x=x))
    assert cause.startswith("1 channel of its input beyond 6 rms (channel 50: ")
    assert "sets the scale of its 8-bit rows, and its scheme keeps none out" in cause


def test_what_is_not_the_layer_itself(same: Evidence) -> None:
    """An input that parted before, or the same custom op run by two runners: no quantization is to blame."""
    parted = measured_again(same, 1.1, parted=("CachedAttention", 0.2))
    assert likely_cause(parted) == ("its input differs already (normalized error 0.2); it comes from CachedAttention")
    runs = likely_cause(measured_again(same, 1.1, same_op="VQLinear"))
    assert runs.startswith("it is a VQLinear in both models: its input, its operands or a runner's kernel differs")


def measured_again(same: Evidence, factor: float, **known: object) -> Evidence:
    """The layer, off by ``factor``, with what else is known of it."""
    assert same.x is not None
    return measured(same.x, same.reference, same.reference * np.float32(factor), **known)


def test_rounding_to_16_bits(same: Evidence) -> None:
    assert same.x is not None
    half = measured(same.x, same.reference, same.reference.astype(np.float16).astype(np.float32))
    assert likely_cause(replace(half, dtype="float16")).startswith("rounding to float16 (normalized error")
    wrong = measured(same.x, same.reference, same.reference * np.float32(1.1))
    assert likely_cause(replace(wrong, dtype="float16")).startswith("no known cause")
