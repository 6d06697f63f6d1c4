"""Random tensors that look like activations and weights: planted outliers, never zeros or ones."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx

FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def activations(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal values; one channel in sixteen (at least one) is 20 to 60 times larger."""
    x = rng.standard_normal(shape)
    channels = rng.choice(shape[-1], max(1, shape[-1] // 16), replace=False)
    x[..., channels] *= rng.uniform(20, 60, len(channels))
    return x.astype(dtype)


def weight(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal values of standard deviation 1/sqrt(first dimension), one in a thousand 30 times larger."""
    w = rng.standard_normal(shape) / np.sqrt(shape[0])
    w[rng.random(shape) < 1e-3] *= 30
    return w.astype(dtype)


def of_type(rng: np.random.Generator, data_type: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random values of any ONNX type; float types get NaN, infinities and negative zero where they have them."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    if data_type == onnx.TensorProto.STRING:
        words = np.array(["", "a", "naïve", "日本", "x" * 40], object)
        return rng.choice(words, shape) if shape else np.array(rng.choice(words), object)
    if data_type == onnx.TensorProto.BOOL:
        return np.asarray(rng.integers(0, 2, shape), bool)
    bits = onnx.numpy_helper.from_array(np.zeros(8, dtype)).raw_data
    if len(bits) < 8:
        low = -(2 ** (len(bits) - 1)) if np.dtype(dtype).name.startswith("int") else 0
        return np.asarray(rng.integers(low, low + 2 ** len(bits), shape)).astype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)
