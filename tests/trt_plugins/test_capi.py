"""What the C API refuses, and what the libraries export. Arguments are checked before anything touches a GPU."""

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import graphopt

POINTER, FLOAT16, INT8 = 1 << 20, 1, 3
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, BAD_OPERATION, TOO_LARGE = range(7)
PLAIN, RMS_NORM, ADD_RMS_NORM, LAYER_NORM = range(4)


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    for name in ("graphopt_status_string", "graphopt_plugins_version", "graphopt_plugins_build_info"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


def _quantize(lib: ctypes.CDLL, function: str = "graphopt_mixq_quantize", **changes: float | None) -> int:
    arguments: dict[str, object] = {
        "producer": ADD_RMS_NORM,
        "dtype": FLOAT16,
        "rows": 4,
        "cols": 64,
        "capacity": 16,
        **dict.fromkeys(("x", "other", "gamma", "beta", "idx"), POINTER),
        "epsilon": 1e-5,
        **dict.fromkeys(("xq", "sx", "xo", "sum", "y"), POINTER),
    }
    arguments.update(changes)
    integers, longs = ("producer", "dtype"), ("rows", "cols", "capacity")
    converted = [
        ctypes.c_float(value)
        if name == "epsilon"
        else (ctypes.c_int32 if name in integers else ctypes.c_int64 if name in longs else ctypes.c_void_p)(value)
        for name, value in arguments.items()
    ]
    return int(getattr(lib, function)(*converted, None))


def _call(lib: ctypes.CDLL, function: str, arguments: dict[str, int | None], changes: dict[str, int | None]) -> int:
    """Call a linear with ``changes``; the one that adds a residual if they name it."""
    longs = ("m", "n", "k", "capacity", "group")
    if "residual" in changes:
        function += "_add"
        before = list(arguments).index("y")
        items = list(arguments.items())
        arguments = dict([*items[:before], ("residual", None), *items[before:]])
    converted = [
        (ctypes.c_int32 if name == "dtype" else ctypes.c_int64 if name in longs else ctypes.c_void_p)(value)
        for name, value in (arguments | changes).items()
    ]
    return int(getattr(lib, function)(*converted, None))


def _linear(lib: ctypes.CDLL, **changes: int | None) -> int:
    sizes: dict[str, int | None] = {"dtype": FLOAT16, "m": 4, "n": 8, "k": 64, "capacity": 16}
    operands = dict.fromkeys(("xq", "sx", "xo", "wq", "sw", "wo", "bias", "y"), POINTER)
    return _call(lib, "graphopt_mixq_linear", sizes | operands, changes)


def _linear_w4a8(lib: ctypes.CDLL, **changes: int | None) -> int:
    sizes: dict[str, int | None] = {"dtype": FLOAT16, "m": 4, "n": 8, "k": 64, "capacity": 16, "group": 64}
    operands = dict.fromkeys(("xq", "sx", "xo", "wq4", "sg", "sw", "wo", "bias", "y"), POINTER)
    return _call(lib, "graphopt_mixq_linear_w4a8", sizes | operands, changes)


def _linear_w4a4(lib: ctypes.CDLL, **changes: int | None) -> int:
    sizes: dict[str, int | None] = {"dtype": FLOAT16, "m": 4, "n": 8, "k": 64, "capacity": 16, "group": 64}
    operands = dict.fromkeys(("xq4", "sx", "xo", "wq4", "sg", "sw", "wo", "bias", "y", "workspace"), POINTER)
    return _call(lib, "graphopt_mixq_linear_w4a4", sizes | operands, changes)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"rows": 0}, OK),
        ({"rows": 0, "x": None}, OK),
        ({"rows": -1}, BAD_SHAPE),
        ({"cols": 0}, BAD_SHAPE),
        ({"cols": 1 << 40}, TOO_LARGE),
        ({"capacity": 0}, BAD_SHAPE),
        ({"capacity": 24}, BAD_SHAPE),
        ({"dtype": INT8}, BAD_TYPE),
        ({"dtype": -1}, BAD_TYPE),
        ({"producer": 13}, BAD_OPERATION),
        ({"producer": -1}, BAD_OPERATION),
        ({"x": None}, NULL),
        ({"x": POINTER + 1}, MISALIGNED),
        ({"other": None}, NULL),
        ({"gamma": None}, NULL),
        ({"producer": LAYER_NORM, "beta": None}, NULL),
        ({"idx": None}, NULL),
        ({"idx": POINTER + 2}, MISALIGNED),
        ({"xq": None}, NULL),
        ({"sx": None}, NULL),
        ({"sx": POINTER + 2}, MISALIGNED),
        ({"xo": None}, NULL),
        ({"y": POINTER + 1}, MISALIGNED),
        ({"sum": POINTER + 1}, MISALIGNED),
    ],
    ids=str,
)
def test_quantize_checks_its_arguments(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _quantize(lib, **changes) == status
    assert _quantize(lib, "graphopt_mixq_quantize4", **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"m": 0}, OK),
        ({"m": -1}, BAD_SHAPE),
        ({"n": 0}, BAD_SHAPE),
        ({"k": 0}, BAD_SHAPE),
        ({"k": 133145}, TOO_LARGE),
        ({"capacity": 8}, BAD_SHAPE),
        ({"dtype": INT8}, BAD_TYPE),
        *(({name: None}, NULL) for name in ("xq", "sx", "xo", "wq", "sw", "wo", "bias", "y")),
        *(({name: POINTER + 1}, MISALIGNED) for name in ("sx", "xo", "sw", "wo", "bias", "y")),
    ],
    ids=str,
)
def test_linear_checks_its_arguments(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear(lib, **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"m": 0}, OK),
        ({"m": -1}, BAD_SHAPE),
        ({"n": 0}, BAD_SHAPE),
        ({"k": 0}, BAD_SHAPE),
        ({"k": 133145}, TOO_LARGE),
        ({"capacity": 8}, BAD_SHAPE),
        ({"group": 0}, BAD_SHAPE),
        ({"group": 33}, BAD_SHAPE),
        ({"dtype": INT8}, BAD_TYPE),
        *(({name: None}, NULL) for name in ("xq", "sx", "xo", "wq4", "sg", "sw", "wo", "bias", "y")),
        *(({name: POINTER + 1}, MISALIGNED) for name in ("sx", "xo", "sw", "wo", "bias", "y")),
    ],
    ids=str,
)
def test_linear_w4a8_checks_its_arguments(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear_w4a8(lib, **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"m": 0}, OK),
        ({"m": -1}, BAD_SHAPE),
        ({"n": 0}, BAD_SHAPE),
        ({"k": 133145}, TOO_LARGE),
        ({"k": 133143}, TOO_LARGE),  # fits, but not when padded
        ({"group": 48}, BAD_SHAPE),
        ({"group": 48, "k": 40, "m": 0}, OK),
        ({"dtype": INT8}, BAD_TYPE),
        *(({name: None}, NULL) for name in ("xq4", "sx", "xo", "wq4", "sg", "sw", "wo", "bias", "y", "workspace")),
        *(({name: POINTER + 1}, MISALIGNED) for name in ("sx", "xo", "sw", "wo", "bias", "y", "workspace")),
    ],
    ids=str,
)
def test_linear_w4a4_checks_its_arguments(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear_w4a4(lib, **changes) == status


@pytest.mark.parametrize("linear", [_linear, _linear_w4a8, _linear_w4a4])
def test_a_residual_is_checked_where_there_is_one(linear: Callable[..., int], lib: ctypes.CDLL) -> None:
    assert linear(lib, residual=None, m=0) == OK
    assert linear(lib, residual=None, y=None) == NULL
    assert linear(lib, residual=POINTER, wo=POINTER + 1) == MISALIGNED
    assert linear(lib, residual=POINTER + 1) == MISALIGNED


def test_w4a4_needs_memory_for_the_codes_of_8192_tokens_at_most(lib: ctypes.CDLL) -> None:
    size = lib.graphopt_mixq_linear_w4a4_workspace_bytes
    size.argtypes, size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    assert (size(0, 64), size(3, 65), size(8192, 4096), size(1 << 20, 4096)) == (0, 288, 1 << 25, 1 << 25)


def test_every_status_has_its_own_sentence(lib: ctypes.CDLL) -> None:
    sentences = [lib.graphopt_status_string(status).decode() for status in range(9)]
    assert sentences[0] == "success"
    assert len(set(sentences)) == len(sentences)
    assert lib.graphopt_status_string(1001).decode() == "invalid argument"
    assert lib.graphopt_status_string(-5).decode() == "unknown status"


def test_the_library_says_what_it_is(lib: ctypes.CDLL) -> None:
    assert lib.graphopt_plugins_version().decode() == graphopt.__version__
    info = lib.graphopt_plugins_build_info().decode()
    assert re.fullmatch(r"cuda=\d+\.\d+ archs=[\da,]+ ptx=(\d+|none) tensorrt_headers=\d+\.\d+\.\d+", info)


def test_only_the_interface_is_exported(library: Path) -> None:
    listed = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout.splitlines()
    defined = {line.split()[-1] for line in listed if " T " in line}
    assert {"getCreators", "setLoggerFinder", "graphopt_mixq_linear", "graphopt_mixq_quantize"} <= defined
    assert all(name in ("getCreators", "setLoggerFinder") or name.startswith("graphopt_") for name in defined), defined
    undefined = " ".join(line.split()[-1] for line in listed if " U " in line)
    assert "nvinfer" not in undefined
    assert "cuda" not in undefined


def test_the_self_registering_library_needs_only_the_main_one(library: Path) -> None:
    thin = library.with_name("libgraphopt_plugins_autoreg.so")
    done = subprocess.run(
        ["python3", "-c", f"import ctypes; print(ctypes.CDLL({str(thin)!r}).graphopt_register_plugins())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"
    assert "load TensorRT before" in done.stderr
