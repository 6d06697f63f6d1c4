"""What the C API of producers by themselves refuses; it needs no GPU."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

POINTER = 1 << 20
FLOAT16, INT8 = 1, 3
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, BAD_OPERATION, TOO_LARGE = range(7)
PLAIN, RMS_NORM, ADD_RMS_NORM, LAYER_NORM, GATED_SILU, GELU, SWIGLU = 0, 1, 2, 3, 5, 8, 10


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, OK),
        ({"producer": GELU}, OK),
        ({"producer": PLAIN}, BAD_OPERATION),
        ({"producer": SWIGLU}, BAD_OPERATION),
        ({"producer": 99}, BAD_OPERATION),
        ({"dtype": INT8}, BAD_TYPE),
        ({"rows": -1}, BAD_SHAPE),
        ({"cols": 0}, BAD_SHAPE),
        ({"rows": 1 << 31}, TOO_LARGE),
        ({"cols": 1 << 30}, TOO_LARGE),
        ({"rows": 1 << 29, "cols": 1 << 28}, TOO_LARGE),
        ({"rows": 2, "x": None}, NULL),
        ({"rows": 2, "y": None}, NULL),
        ({"rows": 2, "gamma": None}, NULL),
        ({"rows": 2, "producer": LAYER_NORM, "beta": None}, NULL),
        ({"rows": 2, "producer": ADD_RMS_NORM, "other": None}, NULL),
        ({"rows": 2, "producer": GATED_SILU, "other": None}, NULL),
        ({"rows": 2, "x": POINTER + 1}, MISALIGNED),
        ({"rows": 2, "producer": ADD_RMS_NORM, "sum": POINTER + 1}, MISALIGNED),
    ],
)
def test_fused_refuses(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    numbers = {"producer": RMS_NORM, "dtype": FLOAT16, "rows": 0, "cols": 64}
    pointers = dict.fromkeys(("x", "other", "gamma", "beta", "y"), POINTER) | {"sum": None}
    values = {**numbers, **pointers, **changes}
    made: list[Any] = [(ctypes.c_int32 if n in ("producer", "dtype") else ctypes.c_int64)(values[n]) for n in numbers]
    made += [ctypes.c_void_p(values[n]) for n in pointers]
    made.insert(len(numbers) + list(pointers).index("y"), ctypes.c_float(1e-5))
    assert lib.graphopt_fused(*made, None) == status
