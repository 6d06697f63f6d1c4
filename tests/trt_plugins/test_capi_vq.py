"""What the C API of vector-quantized weights refuses, and what it plans. Neither needs a GPU."""

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.passes.vq import e8

ROOT = Path(__file__).resolve().parents[2] / "trt_plugins"
POINTER = 1 << 20
FLOAT32, FLOAT16, BFLOAT16, INT8 = range(4)
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, BAD_OPERATION, TOO_LARGE = range(7)
PLAIN, ADD_LAYER_NORM, GATED_SILU, SWIGLU = 0, 4, 5, 10
WHOLE = 1 << 30
GPTVQ2, AQLM2, AQLM3 = (4, 8, 1, 256, 256), (8, 8, 2, WHOLE, WHOLE), (8, 12, 2, WHOLE, WHOLE)
QUIP4 = (8, 16, 2, WHOLE, WHOLE)
OTHER = (8, 8, 3, WHOLE, WHOLE)
H100, A100, BLACKWELL = (132, 90), (108, 80), (148, 100)


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def _call(
    function: Any, numbers: dict[str, int], pointers: dict[str, int | None], changes: dict[str, int | None]
) -> int:
    """Call with int32 and int64 arguments by the names' types, then pointers, then no stream."""
    narrow = ("dtype", "vector", "bits", "residuals")
    values = {**numbers, **pointers, **changes}
    arguments = [
        ctypes.c_void_p(value) if name in pointers else (ctypes.c_int32 if name in narrow else ctypes.c_int64)(value)
        for name, value in values.items()
    ]
    return int(function(*arguments, None))


def _linear(lib: ctypes.CDLL, **changes: int | None) -> int:
    numbers = {"dtype": FLOAT16, "m": 0, "n": 8, "k": 64, "vector": 4, "bits": 8, "residuals": 1}
    numbers |= {"tile_rows": 256, "tile_columns": 256}
    pointers = dict.fromkeys(("x", "codes", "codebooks", "scale", "bias", "y", "workspace"), POINTER)
    return _call(lib.graphopt_vq_linear, numbers, pointers, changes)


def _linear_e8(lib: ctypes.CDLL, **changes: int | None) -> int:
    numbers = {"dtype": FLOAT16, "m": 0, "n": 8, "k": 64, "residuals": 2}
    pointers = dict.fromkeys(("x", "codes", "ratios", "scale", "bias", "y", "workspace"), POINTER)
    return _call(lib.graphopt_vq_linear_e8, numbers, pointers, changes)


def _hadamard(lib: ctypes.CDLL, **changes: int | None) -> int:
    numbers = {"producer": PLAIN, "dtype": FLOAT16, "rows": 0, "k": 60, "channels": 64, "block": 64}
    pointers = dict.fromkeys(("x", "other", "gamma", "beta", "signs", "z"), POINTER) | {"sum": None, "y": None}
    values = {**numbers, **pointers, **changes}
    made: list[Any] = [(ctypes.c_int32 if n in ("producer", "dtype") else ctypes.c_int64)(values[n]) for n in numbers]
    made += [ctypes.c_void_p(values[n]) for n in pointers]
    made.insert(len(numbers) + list(pointers).index("z"), ctypes.c_float(1e-5))
    return int(lib.graphopt_vq_hadamard(*made, None))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, OK),
        ({"dtype": INT8}, BAD_TYPE),
        ({"m": -1}, BAD_SHAPE),
        ({"n": 0}, BAD_SHAPE),
        ({"k": 0}, BAD_SHAPE),
        ({"vector": 3}, BAD_SHAPE),
        ({"bits": 0}, BAD_SHAPE),
        ({"bits": 17}, BAD_SHAPE),
        ({"residuals": 5}, BAD_SHAPE),
        ({"tile_rows": 0}, BAD_SHAPE),
        ({"tile_columns": 30}, BAD_SHAPE),  # codebooks would change inside a vector
        ({"m": 1 << 40}, TOO_LARGE),
        ({"m": 4, "codebooks": None}, NULL),
        ({"m": 4, "x": None}, NULL),
        ({"m": 4, "x": POINTER + 1}, MISALIGNED),
        ({"m": 4, "scale": POINTER + 2}, MISALIGNED),
    ],
)
def test_linear_refuses(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear(lib, **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, OK), ({"residuals": 0}, BAD_SHAPE), ({"dtype": INT8}, BAD_TYPE), ({"m": 1, "ratios": None}, NULL)],
)
def test_lattice_linear_refuses(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _linear_e8(lib, **changes) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, OK),
        ({"block": 48}, BAD_SHAPE),
        ({"block": 1 << 17, "channels": 1 << 17}, BAD_SHAPE),
        ({"channels": 96}, BAD_SHAPE),
        ({"k": 65}, BAD_SHAPE),
        ({"producer": SWIGLU}, BAD_OPERATION),
        ({"producer": 99}, BAD_OPERATION),
        ({"rows": 2, "signs": None}, NULL),
        ({"rows": 2, "z": POINTER + 1}, MISALIGNED),
        ({"rows": 2, "y": POINTER + 1}, MISALIGNED),
        ({"rows": 2, "producer": ADD_LAYER_NORM, "beta": None}, NULL),
        ({"rows": 2, "producer": ADD_LAYER_NORM, "other": None}, NULL),
        ({"rows": 2, "producer": GATED_SILU, "other": None}, NULL),
    ],
)
def test_hadamard_refuses(lib: ctypes.CDLL, changes: dict[str, int | None], status: int) -> None:
    assert _hadamard(lib, **changes) == status


def _plan(lib: ctypes.CDLL, fmt: tuple[int, ...], m: int, n: int, k: int, **how: Any) -> dict[str, Any]:
    text = ctypes.create_string_buffer(4096)
    longs, numbers = (ctypes.c_int64(v) for v in (m, n, k)), [ctypes.c_int32(v) for v in fmt[:3]]
    tiles = (ctypes.c_int64(v) for v in fmt[3:])
    device = (ctypes.c_int32(v) for v in (how.get("lattice", 0), *how.get("device", H100)))
    lib.graphopt_vq_plan.restype = ctypes.c_int64
    size = lib.graphopt_vq_plan(
        ctypes.c_int32(how.get("dtype", FLOAT16)), *longs, *numbers, *tiles, *device, text, ctypes.c_int64(len(text))
    )
    assert size == len(text.value)
    plan: dict[str, Any] = json.loads(text.value)
    return plan


@pytest.mark.parametrize("device", [H100, A100])
@pytest.mark.parametrize("m", [1, 2, 8, 9, 16, 40, 64, 100, 512, 4096])
@pytest.mark.parametrize("fmt", [GPTVQ2, AQLM2, AQLM3])
def test_every_preset_has_a_fast_kernel_for_any_tokens(
    lib: ctypes.CDLL, fmt: tuple[int, ...], m: int, device: tuple[int, int]
) -> None:
    plan = _plan(lib, fmt, m, 4096, 8192, device=device)
    assert plan["kernel"] != "generic"
    assert plan["us"] == min(plan["candidates"].values())
    assert device == H100 or (plan["split"] == 1 and not plan["kernel"].startswith("tile"))


def test_what_has_no_kernel_of_its_own_is_done_by_the_generic_one(lib: ctypes.CDLL) -> None:
    assert _plan(lib, (2, 8, 1, WHOLE, WHOLE), 1, 64, 64)["kernel"] == "generic"
    assert _plan(lib, AQLM2, 1, 64, 68)["kernel"] == "generic"
    assert _plan(lib, AQLM2, 1, 64, 64, dtype=FLOAT32)["kernel"] == "generic"
    assert _plan(lib, (8, 8, 2, 256, 256), 1, 512, 512)["kernel"] == "generic"
    assert _plan(lib, QUIP4, 1, 64, 64, lattice=1)["kernel"] != "generic"


@pytest.mark.parametrize(("fmt", "lattice"), [(GPTVQ2, 0), (AQLM2, 0), (AQLM3, 0), (QUIP4, 1)])
def test_products_are_looked_up_for_one_token_only(lib: ctypes.CDLL, fmt: tuple[int, ...], lattice: int) -> None:
    assert _plan(lib, fmt, 1, 8192, 8192, lattice=lattice)["kernel"] == "table"
    assert "table" not in _plan(lib, fmt, 2, 8192, 8192, lattice=lattice)["candidates"]


@pytest.mark.parametrize(
    ("n", "k", "kernels"),
    [
        (
            8192,
            8192,
            {4: "rows8", 8: "tile64", 16: "tile64", 64: "tile64", 96: "tile128", 128: "tile128", 256: "tile256"},
        ),
        (
            28672,
            8192,
            {4: "rows8", 8: "tile64", 16: "tile64", 64: "tile64", 96: "tile128", 128: "tile128", 256: "tile256"},
        ),
        (8192, 28672, {8: "tile64", 16: "tile64", 64: "tile64", 96: "tile128", 128: "tile128", 256: "tile256"}),
        (4096, 4096, {4: "rows8", 9: "tile64", 16: "tile64", 64: "tile64", 128: "tile64", 512: "tile256"}),
    ],
)
def test_lattices_take_what_was_fastest(lib: ctypes.CDLL, n: int, k: int, kernels: dict[int, str]) -> None:
    assert {m: _plan(lib, QUIP4, m, n, k, lattice=1)["kernel"] for m in kernels} == kernels


def test_products_need_shared_memory_and_tiles_of_as_many_rows(lib: ctypes.CDLL) -> None:
    candidates = [_plan(lib, fmt, 1, 512, 512, device=A100)["candidates"] for fmt in (GPTVQ2, AQLM2)]
    assert ["table" in found for found in candidates] == [False, True]
    assert "table" not in _plan(lib, (4, 8, 1, 128, 256), 1, 512, 512)["candidates"]


def test_products_of_4096_entries_are_for_hopper(lib: ctypes.CDLL) -> None:
    for (n, k), device in (((8192, 28672), H100), ((4096, 4096), (78, 90))):
        assert _plan(lib, AQLM3, 1, n, k, device=device)["kernel"] == "table"
    assert "table" not in _plan(lib, AQLM3, 1, 8192, 8192, device=BLACKWELL)["candidates"]
    assert "table" in _plan(lib, AQLM2, 1, 8192, 8192, device=BLACKWELL)["candidates"]


def _workspace(lib: ctypes.CDLL, fmt: tuple[int, ...], m: int, n: int, k: int) -> int:
    function = lib.graphopt_vq_linear_workspace_bytes
    function.restype = ctypes.c_int64
    numbers, tiles = (ctypes.c_int32(v) for v in fmt[:3]), (ctypes.c_int64(v) for v in fmt[3:])
    return int(function(*(ctypes.c_int64(v) for v in (m, n, k)), *numbers, *tiles))


def test_workspace_for_few_tokens_is_that_of_the_table_kernel(lib: ctypes.CDLL) -> None:
    for m in (1, 256):
        assert _workspace(lib, AQLM2, m, 64, 520) == 3 * 64 * 4  # slices of 256 columns
        assert _workspace(lib, GPTVQ2, m, 64, 520) == _workspace(lib, AQLM2, m, 64, 520)
        assert _workspace(lib, QUIP4, m, 64, 520) == 5 * 64 * 4  # slices of 128 columns
        assert _workspace(lib, AQLM3, m, 64, 520) == 9 * 64 * 4  # of 64
    assert _workspace(lib, OTHER, 16, 64, 520) == 0


@pytest.mark.parametrize(("fmt", "least"), [(GPTVQ2, 257), (AQLM2, 257), (AQLM3, 257), (QUIP4, 257), (OTHER, 17)])
def test_workspace_for_many_tokens_holds_slabs_of_the_weight(
    lib: ctypes.CDLL, fmt: tuple[int, ...], least: int
) -> None:
    assert _workspace(lib, fmt, least - 1, 4096, 4096) < 1 << 21
    assert _workspace(lib, fmt, least, 4096, 4096) == 4096 * (4096 * 2 + 4)
    assert _workspace(lib, fmt, 1 << 18, 28672, 8192) == 8192 * (8192 * 2 + 4)  # 128 MB and factors of its rows
    assert _workspace(lib, fmt, 4096, 8192, 28672) == 2304 * (28672 * 2 + 4)  # rows by 256
    assert _workspace(lib, fmt, 4096, 8192, 1 << 17) == 512 * ((1 << 17) * 2 + 4)
    for n, k in ((8192, 1 << 19), (8193, 8192), (8192, 8196)):  # rows too long for a slab; no whole vectors
        assert _workspace(lib, fmt, 4096, n, k) == _workspace(lib, fmt, 1, n, k)


@pytest.mark.parametrize(("fmt", "lattice"), [(AQLM3, 0), (QUIP4, 1)])
@pytest.mark.parametrize(("n", "k"), [(8192, 8192), (28672, 8192)])
def test_many_tokens_of_costly_look_ups_are_expanded_for(
    lib: ctypes.CDLL, fmt: tuple[int, ...], lattice: int, n: int, k: int
) -> None:
    plan = _plan(lib, fmt, 4096, n, k, lattice=lattice)
    assert plan["kernel"] == "expanded"
    assert plan["slab_rows"] % 256 == 0
    assert plan["slab_rows"] * k * 2 <= 64 << 20  # two of them take turns
    assert "expanded" not in _plan(lib, fmt, 256, n, k, lattice=lattice)["candidates"]
    assert "expanded" not in _plan(lib, fmt, 4096, n, k, lattice=lattice, device=A100)["candidates"]


@pytest.mark.parametrize(
    ("fmt", "entries", "copies", "most_generated"),
    [
        ((4, 8, 2, WHOLE, WHOLE), 512, 16, 64),
        ((2, 6, 1, WHOLE, WHOLE), 64, 32, 64),
        ((8, 10, 1, WHOLE, WHOLE), 1024, 8, 64),
        ((2, 13, 1, WHOLE, WHOLE), 8192, 4, 64),  # half of the copies that would be free of bank conflicts have no room
        ((16, 12, 2, WHOLE, WHOLE), 0, 1, 32),  # codebooks of 256 KB stay in memory
        ((8, 16, 1, WHOLE, WHOLE), 0, 1, 32),
        ((4, 8, 2, 256, 256), 512, 16, 32),
        ((8, 8, 2, 4, 8), 512, 8, 32),
    ],
)
def test_any_format_is_expanded_for_many_tokens(
    lib: ctypes.CDLL, fmt: tuple[int, ...], entries: int, copies: int, most_generated: int
) -> None:
    plan = _plan(lib, fmt, 2048, 8192, 8192)
    assert (plan["kernel"], plan["preset"]) == ("expanded", "none")
    assert (plan["entries"], plan["copies"], plan["most_generated"]) == (entries, copies, most_generated)
    assert plan["shared_bytes"] == entries * 2 * fmt[0] * copies <= 226 * 1024


@pytest.mark.parametrize(
    ("fmt", "sizes"),
    [
        ((8, 8, 3, WHOLE, WHOLE), (2048, 8196, 8192)),
        ((8, 8, 3, WHOLE, WHOLE), (2048, 8192, 8196)),
        ((8, 8, 3, WHOLE, WHOLE), (16, 8192, 8192)),
        ((8, 8, 3, 2, 256), (2048, 8192, 8192)),  # a thread makes four rows at a time
        ((4, 8, 3, 256, 12), (2048, 8192, 8192)),  # and eight columns
    ],
)
def test_what_cannot_be_expanded_is_not(lib: ctypes.CDLL, fmt: tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    assert _plan(lib, fmt, *sizes)["kernel"] == "generic"


def test_the_kernels_lattice_is_that_of_the_body(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "table.cpp", tmp_path / "table"
    source.write_text(
        '#include <cstdio>\n#include "vq/linear/e8_table.h"\n'
        'int main() { for (auto row : graphopt::vq::make_e8_table().row) std::printf("%u\\n", row); }\n'
    )
    subprocess.run([compiler, "-std=c++17", "-I", ROOT, source, "-o", program], check=True)
    rows = np.array(subprocess.run([program], check=True, capture_output=True, text=True).stdout.split(), np.int64)
    table = ((rows[:, None] >> (2 * np.arange(8))) & 3) + 0.5
    table[rows >> 16 == 1, 7] *= -1
    np.testing.assert_array_equal(table, e8.table())
