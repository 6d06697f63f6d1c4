"""Norms and activations by themselves, thread by thread on the host: kernels, as they are, against the evaluators."""

import ctypes

import ml_dtypes
import numpy as np
import pytest

from graphopt.core.producers import PRODUCERS
from graphopt.passes.fused.ops import FUSED
from tests.support import emulation

TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
#: Two roundings to T, and the error of float32 and its approximate functions before (producer.cuh).
RELATIVE = dict(zip(TYPES, (2.0**-20, 2.0**-10 + 2.0**-13, 2.0**-7 + 2.0**-13), strict=True))
#: What float32 leaves of a mean, and of 1 + erf and 1 + tanh, which cancel: of |x| or |gate up|.
OF_MEAN, OF_PRODUCT = 2.0**-20, 2.0**-23
SMALLEST = 2.0**-23  # two steps of float16
#: Rows and channels: few rows and, of four multiprocessors, many; a warp, several; no vectors.
SHAPES = ((5, 576), (3, 2056), (11, 24), (10, 2048), (6, 101))
GUARD = 16


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("fused")
    return ctypes.CDLL(str(emulation.build(folder, "fused", flags=("-shared", "-Xcompiler", "-fPIC"))))


def aligned(array: np.ndarray, *, guard: int = 0) -> np.ndarray:
    """A copy at a multiple of 16 bytes, with ``guard`` more elements behind it in memory."""
    whole = np.full(array.size + guard + 16, 7, array.dtype)
    start = -whole.ctypes.data % 16 // array.itemsize
    part = whole[start : start + array.size + guard]
    part[: array.size] = array.reshape(-1)
    return part


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_kernels_equal_the_evaluators(call: ctypes.CDLL, name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    spec, number = FUSED[name], list(PRODUCERS).index(name) + 1
    for rows, k in SHAPES:
        operands = {}
        for param in spec.inputs:
            vector = param.name in ("gamma", "beta")
            values = rng.uniform(0.5, 1.5, k) if vector else rng.standard_normal((rows, k)) * 2
            if not vector:
                values[:, rng.integers(k)] *= 20
            operands[param.name] = values.astype(dtype)
        first = operands[spec.inputs[0].name]
        first[1, 5] = np.nan
        first[2] += 300  # a mean far above the deviation
        want = spec.evaluate(*operands.values())
        names = {"gate": "x", "up": "other", "residual": "other"}
        held = {names.get(n, n): aligned(a) for n, a in operands.items()}
        outputs = [aligned(np.zeros((rows, k), dtype), guard=GUARD) for _ in range(2)]
        addresses = [held[n].ctypes.data if n in held else None for n in ("x", "other", "gamma", "beta")]
        sizes = ctypes.c_int32(number), ctypes.c_int32(TYPES.index(dtype)), ctypes.c_int64(rows), ctypes.c_int64(k)
        written = [ctypes.c_void_p(o.ctypes.data) for o in outputs]
        inputs = map(ctypes.c_void_p, addresses)
        assert call.graphopt_fused(*sizes, *inputs, ctypes.c_float(1e-5), *written, None) == 0
        for got, expected in zip(outputs, want, strict=False):
            assert (got[rows * k :] == 7).all()
            a, b = (v.reshape(rows, k).astype(np.float64) for v in (got[: rows * k], expected))
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            clean = np.isfinite(b).all(axis=1)
            lost = (
                OF_MEAN
                if "Norm" in name
                else OF_PRODUCT * np.prod([np.abs(v.astype(np.float64)) for v in operands.values()], axis=0)
            )
            bound = RELATIVE[dtype] * np.abs(b) + SMALLEST + lost
            if "Layer" in name:
                bound[2] += 300 * 2.0**-20  # of that mean, over a deviation of 2
            assert np.max((np.abs(a - b) / bound)[clean]) <= 1
