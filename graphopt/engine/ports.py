"""Inputs and outputs of an engine as numpy sees them: types, conversion, and seeded values."""

__all__ = ["Port", "converted", "numpy_dtype", "random_input", "random_inputs"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.engine.profiles import Shape
from graphopt.errors import EngineError

Array = npt.NDArray[Any]

#: TensorRT's name of an element type -> numpy's.
_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32, "HALF": np.float16, "BF16": ml_dtypes.bfloat16, "INT8": np.int8, "UINT8": np.uint8,
    "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "FP8": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
#: Values of random integer inputs whose meaning is unknown are below this: small enough to index any table.
_SMALL = 32
_OUTLIER_SCALE = 20


@dataclass(frozen=True)
class Port:
    """One input or output of an engine."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


def numpy_dtype(kind: str, tensor: str, plan: Path) -> np.dtype[Any]:
    """Return numpy's type for TensorRT's name ``kind`` of one, such as ``HALF``.

    Raises:
        EngineError: numpy has none; names the tensor and the plan.
    """
    if kind not in _DTYPES:
        raise EngineError(f"tensor '{tensor}' of {plan} has type {kind}, which cannot be passed from here")
    return np.dtype(_DTYPES[kind])


def converted(array: Array, port: Port) -> Array:
    """Return ``array`` in the type of ``port``: TensorRT 8, for one, has no 64-bit integers.

    Raises:
        EngineError: values would change.
    """
    if array.dtype == port.dtype:
        return array
    result = array.astype(port.dtype)
    same_kind = np.issubdtype(array.dtype, np.integer) and np.issubdtype(port.dtype, np.integer)
    if not same_kind or not np.array_equal(result, array):
        raise EngineError(f"input '{port.name}' has type {array.dtype}, the plan wants {port.dtype}; convert the data")
    return result


def random_inputs(ports: Iterable[Port], shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, Array]:
    """Seeded values for every one of ``ports``, as `random_input` makes them, in full."""
    return {
        p.name: np.resize(random_input(p.name, shapes[p.name], p.dtype, shapes, seed), shapes[p.name]) for p in ports
    }


def random_input(name: str, shape: Shape, dtype: np.dtype[Any], shapes: Mapping[str, Shape], seed: int) -> Array:
    """Values for one input, at most a few million of them, to be repeated.

    Floats are normal with one channel in 64 planted 20 times larger. ``attention_mask`` is all ones, ``position_ids``
    count on from the length of the cache, ``start`` leaves a cache that is updated in place full after the call, other
    integers are small.

    Args:
        name: of the input.
        shape: its shape.
        dtype: its type.
        shapes: those of all inputs; the cache's gives the first position.
        seed: of the values.
    """
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    if name == "attention_mask" or dtype == np.bool_:
        return np.ones(shape, dtype)
    past = next((s[2] for n, s in shapes.items() if n.startswith("past")), 0)
    if name == "start":
        return np.full(shape, max(0, past - next((s[-1] for n, s in shapes.items() if n == "input_ids"), 0)), dtype)
    if name == "position_ids":
        return np.broadcast_to(np.arange(past, past + shape[-1], dtype=dtype), shape).copy()
    rows = max(1, (4 << 20) // max(1, shape[-1] if shape else 1))
    block = (min(rows, int(np.prod(shape[:-1], dtype=np.int64))), shape[-1]) if shape else ()
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, _SMALL, block).astype(dtype)
    values = rng.standard_normal(block, np.float32)
    if values.ndim:
        values[..., ::64] *= _OUTLIER_SCALE
    return values.astype(dtype)
