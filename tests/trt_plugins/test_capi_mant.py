"""What M-ANT's linears refuse in the C API. Arguments are checked before anything touches a GPU."""

import ctypes
import itertools
from pathlib import Path

import pytest

POINTER, FLOAT32, FLOAT16, INT8 = 1 << 20, 0, 1, 3
FLOAT, SPLIT, BYTES = range(3)
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, BAD_OPERATION, TOO_LARGE = range(7)
_LONGS = ("m", "n", "k", "group", "scales")
SLAB = 40 * 256  # numbers of a W that is written out whole


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def _linear(lib: ctypes.CDLL, **changes: int | None) -> int:
    arguments: dict[str, int | None] = {
        "decode": FLOAT,
        "dtype": FLOAT16,
        "m": 4,
        "n": 8,
        "k": 100,
        "group": 64,
        "scales": 1,
    }
    arguments |= dict.fromkeys(("x", "sx", "codes", "types", "scale", "table", "bias", "y", "workspace"), POINTER)
    arguments |= changes
    converted = [
        (ctypes.c_int32 if name in ("decode", "dtype") else ctypes.c_int64 if name in _LONGS else ctypes.c_void_p)(
            value
        )
        for name, value in arguments.items()
    ]
    return int(lib.graphopt_mant_linear(*converted, None))


@pytest.mark.parametrize("decode", [FLOAT, SPLIT, BYTES])
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"m": 0}, OK),
        ({"m": 0, "x": None, "y": None, "codes": None}, OK),
        ({"m": -1}, BAD_SHAPE),
        ({"n": 0}, BAD_SHAPE),
        ({"k": 0}, BAD_SHAPE),
        ({"group": 0}, BAD_SHAPE),
        ({"group": 16}, BAD_SHAPE),
        ({"group": 80}, BAD_SHAPE),
        ({"m": 1 << 40}, TOO_LARGE),
        ({"k": 1 << 40}, TOO_LARGE),
        ({"n": 1 << 40}, TOO_LARGE),
        ({"dtype": INT8}, BAD_TYPE),
        ({"decode": 3}, BAD_OPERATION),
        ({"decode": -1}, BAD_OPERATION),
        ({"x": None}, NULL),
        ({"codes": None}, NULL),
        ({"types": None}, NULL),
        ({"scale": None}, NULL),
        ({"scale": POINTER + 1}, MISALIGNED),
        ({"bias": POINTER + 1}, MISALIGNED),
        ({"y": POINTER + 1}, MISALIGNED),
        ({"y": None}, NULL),
        ({"workspace": POINTER + 8}, MISALIGNED),
    ],
    ids=str,
)
def test_every_linear_checks_its_arguments(
    lib: ctypes.CDLL, decode: int, changes: dict[str, int | None], status: int
) -> None:
    assert _linear(lib, **{"decode": decode, **changes}) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"decode": FLOAT, "table": None}, NULL),
        ({"decode": FLOAT, "table": POINTER + 1}, MISALIGNED),
        ({"decode": FLOAT, "x": POINTER + 1}, MISALIGNED),
        ({"decode": FLOAT, "dtype": FLOAT32, "x": POINTER + 2}, MISALIGNED),
        ({"decode": BYTES, "table": None}, NULL),
        ({"decode": BYTES, "sx": None}, NULL),
        ({"decode": SPLIT, "sx": POINTER + 2}, MISALIGNED),
        ({"decode": SPLIT, "scales": 0}, BAD_SHAPE),
        ({"decode": SPLIT, "scales": 3}, BAD_SHAPE),
        ({"decode": SPLIT, "k": 1 << 16, "group": 1 << 16}, TOO_LARGE),
    ],
    ids=str,
)
def test_operands_that_only_some_linears_have(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear(lib, **changes) == status


@pytest.mark.parametrize(
    ("decode", "m", "size"),
    [
        (FLOAT, 128, 0),
        (FLOAT, 4096, 2 * SLAB),
        (SPLIT, 32, 0),
        (BYTES, 32, 0),
        (SPLIT, 33, 33 * 256 * 2),  # x as float16
        (BYTES, 33, 33 * 256 * 2),
        (BYTES, 128, 128 * 256 * 2),
        (SPLIT, 129, 2 * SLAB + 129 * 256 * 2),
        (BYTES, 129, 128 * 256 * 2),  # of fewer tokens
        (BYTES, 1 << 20, 128 * 256 * 2),
        (SPLIT, 0, 0),
        (SPLIT, -1, 0),
    ],
)
def test_what_many_tokens_want(lib: ctypes.CDLL, decode: int, m: int, size: int) -> None:
    assert _workspace(lib, decode, m, 40, 256) == size


def test_many_tokens_of_int8_want_tables(lib: ctypes.CDLL) -> None:
    # Behind W: two tables of eight bytes for each group, and a scale for each channel.
    assert _workspace(lib, BYTES, 129, 4096, 256) == 4096 * 256 + 4 * 4096 * 16 + 4096 * 4


@pytest.mark.parametrize("k", [16, 8192, 28672, 1 << 26])
def test_x_is_widened_in_parts(lib: ctypes.CDLL, k: int) -> None:
    for m in (129, 5000, 1 << 20):
        tokens = (_workspace(lib, SPLIT, m, 8, k) - _workspace(lib, FLOAT, m, 8, k)) / (2 * k)
        assert tokens == m or (tokens % 256 == 0 and tokens <= m)
        assert tokens * k <= max(1 << 26, 256 * k)


def test_fewer_tokens_never_want_more(lib: ctypes.CDLL) -> None:
    """TensorRT asks for the most tokens only."""
    tokens = (1, 32, 33, 128, 129, 2048, 2304, 2305, 4096, 8192, 8200, 12000, 1 << 18)
    for decode, k in itertools.product((FLOAT, SPLIT, BYTES), (16, 8192, 28672)):
        sizes = [_workspace(lib, decode, m, 8, k) for m in tokens]
        assert sizes == sorted(sizes)


def _workspace(lib: ctypes.CDLL, decode: int, m: int, n: int, k: int) -> int:
    function = lib.graphopt_mant_linear_workspace_bytes
    function.restype = ctypes.c_int64
    return int(function(ctypes.c_int32(decode), *(ctypes.c_int64(v) for v in (m, n, k, 64))))
