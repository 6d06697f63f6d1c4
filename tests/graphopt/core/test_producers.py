"""Producers are numbered as in the library, and mean what the canonical ops of their names mean."""

import re
from pathlib import Path

import numpy as np
import pytest

from graphopt.core.producers import PRODUCERS
from graphopt.passes import OPS

HEADER = Path(__file__).resolve().parents[3] / "trt_plugins/common/producer.h"
CANONICAL = {spec.name: spec for spec in OPS}


def test_order_is_that_of_the_library() -> None:
    numbers = re.findall(r"^  k(\w+) = (\d+),", HEADER.read_text(), re.MULTILINE)
    assert [(name.upper(), i) for i, name in enumerate(PRODUCERS, 1)] == [(n.upper(), int(i)) for n, i in numbers[1:]]


@pytest.mark.parametrize("name", [name for name in PRODUCERS if name in CANONICAL])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_are_those_of_the_canonical_op(name: str, dtype: type, rng: np.random.Generator) -> None:
    def rows(rng: np.random.Generator, dtype: type) -> np.ndarray:
        return (rng.standard_normal((6, 40)) * rng.choice([1, 30], 40)).astype(dtype)

    inputs = PRODUCERS[name].examples(rng, dtype, rows)
    (want,) = CANONICAL[name].evaluate(*inputs)
    (got,) = PRODUCERS[name].evaluate(*inputs)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm"])
def test_a_sum_is_rounded_before_it_is_normalized(name: str, rng: np.random.Generator) -> None:
    def rows(rng: np.random.Generator, dtype: type) -> np.ndarray:
        return rng.standard_normal((6, 40)).astype(dtype)

    x, residual, *weights = PRODUCERS[f"Add{name}"].examples(rng, np.float16, rows)
    total, y = PRODUCERS[f"Add{name}"].evaluate(x, residual, *weights)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, PRODUCERS[name].evaluate(total, *weights)[0])
