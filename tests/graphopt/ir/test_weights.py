"""Reading weights without attaching them, sizes and dtypes; the spool is in test_io_failures.py."""

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import InternalError
from graphopt.ir import weights
from tests.support.arrays import FLOATS, weight


@pytest.mark.parametrize("dtype", [*FLOATS.values(), ml_dtypes.int4, ml_dtypes.float8_e4m3fn, np.int8, np.bool_])
@pytest.mark.parametrize("shape", [(33, 65), (1,), (), (0, 5)])
def test_put_and_read(rng: np.random.Generator, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    store = weights.WeightStore()
    other = store.put("other", weight(rng, 40, 40))
    constant = store.put("w", array)
    read = weights.read(constant)
    assert read.dtype == array.dtype
    assert read.shape == shape
    assert read.tobytes() == array.tobytes()
    assert tuple(constant.shape) == shape
    assert weights.numpy_dtype(weights.onnx_dtype(constant.dtype)) == array.dtype
    assert weights.nbytes(constant) == len(numpy_helper.from_array(array).raw_data)
    assert isinstance(weights.read(other), np.memmap)


def test_put_takes_a_transposed_view(rng: np.random.Generator) -> None:
    array = weight(rng, 50, 30).T
    np.testing.assert_array_equal(weights.read(weights.WeightStore().put("w", array)), array)


def test_reading_neither_attaches_nor_allows_writing(rng: np.random.Generator) -> None:
    constant = weights.WeightStore().put("w", weight(rng, 64, 64))
    before = constant._values
    with pytest.raises(ValueError, match="read-only"):
        weights.read(constant)[0, 0] = 1
    assert constant._values is before


def test_inline_lazy_values_are_read_without_attaching(rng: np.random.Generator) -> None:
    array = weight(rng, 5, 5, dtype=ml_dtypes.bfloat16)
    constant = gs.Constant("w", LazyValues(numpy_helper.from_array(array, "w")))
    assert weights.read(constant).tobytes() == array.tobytes()
    assert isinstance(constant._values, LazyValues)


def test_reading_a_variable_is_a_bug() -> None:
    with pytest.raises(InternalError, match="was given Variable 'x', not a constant"):
        weights.read(gs.Variable("x"))


@pytest.mark.parametrize(
    ("data_type", "bits"),
    [
        (TensorProto.INT4, 4),
        (TensorProto.FLOAT4E2M1, 4),
        (TensorProto.UINT2, 2),
        (TensorProto.BOOL, 8),
        (TensorProto.BFLOAT16, 16),
        (TensorProto.COMPLEX128, 128),
    ],
)
def test_bits(data_type: int, bits: int) -> None:
    assert weights.bits(data_type) == bits
