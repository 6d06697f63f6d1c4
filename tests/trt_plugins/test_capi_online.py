"""What the C API of online prediction refuses. Arguments are checked before anything touches a GPU."""

import ctypes
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

POINTER, FLOAT16, INT8 = 1 << 20, 1, 3
NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, BAD_OPERATION, TOO_LARGE, BAD_ATTRIBUTE = range(1, 8)
RMS_NORM = 1


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    lib.graphopt_mixq_prediction_state_bytes.restype = ctypes.c_int64
    lib.graphopt_mixq_columns_state_bytes.restype = ctypes.c_int64
    return lib


def _call(function: Callable[..., int], arguments: dict[str, float | None]) -> int:
    numbers, reals = ("producer", "dtype"), ("epsilon", "sigma", "sigma_rms")
    longs = ("rows", "cols", "listed", "capacity", "n", "k", "group")
    converted = [
        ctypes.c_int32(value)
        if name in numbers
        else ctypes.c_float(value)
        if name in reals
        else ctypes.c_int64(value)
        if name in longs
        else ctypes.c_void_p(value)
        for name, value in arguments.items()
    ]
    return int(function(*converted, None))


def _quantize(lib: ctypes.CDLL, **changes: float | None) -> int:
    arguments: dict[str, float | None] = {
        **{"producer": RMS_NORM, "dtype": FLOAT16, "rows": 4, "cols": 64, "listed": 16, "capacity": 32},
        **dict.fromkeys(("x", "other", "gamma", "beta", "idx"), POINTER),
        **{"epsilon": 1e-5, "sigma": 0.0, "sigma_rms": 5.0},
        **dict.fromkeys(("xq", "sx", "xo", "sum", "y", "set", "state"), POINTER),
    }
    return _call(lib.graphopt_mixq_quantize_online, arguments | changes)


def _columns(lib: ctypes.CDLL, **changes: float | None) -> int:
    address = ctypes.c_void_p()
    arguments: dict[str, float | None] = {
        **{"dtype": FLOAT16, "n": 8, "k": 64, "listed": 16, "capacity": 32, "group": 64},
        **dict.fromkeys(("codes", "sg", "sw", "wo", "idx", "set", "state"), POINTER),
        "columns": ctypes.addressof(address),
    }
    return _call(lib.graphopt_mixq_columns, arguments | changes)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"rows": -1}, BAD_SHAPE),
        ({"cols": 0}, BAD_SHAPE),
        ({"cols": 133145}, TOO_LARGE),
        ({"listed": 0}, BAD_SHAPE),
        ({"capacity": 0}, BAD_SHAPE),
        ({"capacity": 40}, BAD_SHAPE),
        ({"listed": 48}, BAD_SHAPE),
        ({"dtype": INT8}, BAD_TYPE),
        ({"producer": 13}, BAD_OPERATION),
        ({"sigma": -1.0}, BAD_ATTRIBUTE),
        ({"sigma_rms": math.nan}, BAD_ATTRIBUTE),
        *(({name: None}, NULL) for name in ("x", "gamma", "idx", "xq", "sx", "xo", "set", "state")),
        ({"set": POINTER + 2}, MISALIGNED),
        ({"state": POINTER + 4}, MISALIGNED),
    ],
    ids=str,
)
def test_quantize_checks_its_arguments(lib: ctypes.CDLL, changes: dict[str, float | None], status: int) -> None:
    assert _quantize(lib, **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"n": 0}, BAD_SHAPE),
        ({"k": 0}, BAD_SHAPE),
        ({"capacity": 8}, BAD_SHAPE),
        ({"listed": 48}, BAD_SHAPE),
        ({"group": -1}, BAD_SHAPE),
        ({"dtype": INT8}, BAD_TYPE),
        *(({name: None}, NULL) for name in ("codes", "sg", "sw", "wo", "idx", "set", "state", "columns")),
        ({"sw": POINTER + 1}, MISALIGNED),
        ({"state": POINTER + 8}, MISALIGNED),
    ],
    ids=str,
)
def test_columns_check_their_arguments(lib: ctypes.CDLL, changes: dict[str, float | None], status: int) -> None:
    assert _columns(lib, **changes) == status


def test_states_hold_what_they_must(lib: ctypes.CDLL) -> None:
    cols, capacity, n = 4096, 128, 1000
    assert lib.graphopt_mixq_prediction_state_bytes(ctypes.c_int64(cols), ctypes.c_int64(capacity)) >= 4 * (
        cols + capacity
    )
    bytes_of = lib.graphopt_mixq_columns_state_bytes
    columns = 2 * n * capacity
    assert columns < bytes_of(FLOAT16, ctypes.c_int64(n), ctypes.c_int64(capacity)) < columns + 1024


def test_prototypes_in_python_are_those_of_the_header() -> None:
    root = Path(__file__).parents[2]
    header = re.sub(r"//[^\n]*", "", (root / "trt_plugins/capi.h").read_text())
    source = (root / "graphopt/bench/capi_online.py").read_text()
    for name, count in (
        ("graphopt_mixq_prediction_init", 3 + 3),
        ("graphopt_mixq_quantize_online", 2 + 4 + 5 + 3 + 8),
        ("graphopt_mixq_columns_init", 1 + 2 + 2),
        ("graphopt_mixq_columns", 1 + 5 + 9),
    ):
        (arguments,) = re.findall(rf"{name}\(([^)]*)\)", header)
        assert len(arguments.split(",")) == count, name
        assert f"lib.{name}.argtypes" in source
