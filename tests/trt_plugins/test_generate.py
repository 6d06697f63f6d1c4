"""Kernels that NVRTC generates for formats without one of their own: compiled, kept and refused without a GPU."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.engine import nvrtc
from graphopt.engine.build import BuildOptions, build
from graphopt.passes.vq.numerics import row_bytes

FLOAT32, FLOAT16, BFLOAT16 = range(3)
OK, DAMAGED, OTHER_LIBRARY = 0, 9, 10
WHOLE = 1 << 30
MAGIC = b"VQKERN01"
MOST_REGISTERS = 255


@pytest.fixture(scope="module")
def cache(libnvrtc: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of generated kernels that the tests of this module share, and libnvrtc for the library."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(folder))
        patch.setenv(nvrtc.ENVIRONMENT, str(libnvrtc))
        yield folder


@pytest.fixture(scope="module")
def lib(library: Path, cache: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def generate(
    lib: ctypes.CDLL, fmt: tuple[int, int, int], arch: int, dtype: int = FLOAT16, tile: int = WHOLE, k: int = 1024
) -> tuple[bytes, str]:
    long, number = ctypes.c_int64, ctypes.c_int32
    function = lib.graphopt_vq_generate
    function.restype = long
    kernels, text = ctypes.create_string_buffer(1 << 20), ctypes.create_string_buffer(1 << 14)
    sizes = number(dtype), long(512), long(k), *map(number, fmt), long(tile), long(tile), number(arch)
    size = function(*sizes, kernels, long(len(kernels)), text, long(len(text)))
    return kernels.raw[:size], text.value.decode()


def image_of(text: str) -> dict[str, Any]:
    (image,) = json.loads(text)["images"]
    return dict(image)


def install(lib: ctypes.CDLL, kernels: bytes) -> int:
    return int(lib.graphopt_vq_install(kernels, ctypes.c_int64(len(kernels))))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("fmt", [(4, 8, 2), (2, 6, 1), (16, 12, 2), (8, 10, 1)], ids=str)
def test_a_format_compiles_without_spills(lib: ctypes.CDLL, fmt: tuple[int, int, int], arch: int) -> None:
    kernels, text = generate(lib, fmt, arch)
    image = image_of(text)
    assert image["compute_capability"] == arch
    assert image["spilled_bytes"] == [0, 0]
    assert all(0 < registers <= MOST_REGISTERS for registers in image["registers"])
    assert image["shared_bytes"] + 2 * image["panel_bytes"] <= {80: 163, 90: 227}[arch] * 1024
    v, b, _ = fmt
    # The bound of the codebook cache: all entries, with copies, or as many as there is room for.
    assert image["n_shared"] == 1 << b if fmt != (16, 12, 2) else 1 << (b - 1) < image["n_shared"] < 1 << b
    assert image["copies"] * 2 * v <= 128
    assert kernels[: len(MAGIC)] == MAGIC
    assert len(kernels) > image["bytes"]
    assert install(lib, kernels) == OK


def test_bfloat16_and_tiles_have_kernels_of_their_own(lib: ctypes.CDLL) -> None:
    plain, _ = generate(lib, (4, 8, 2), 90)
    other, text = generate(lib, (4, 8, 2), 90, BFLOAT16, tile=256)
    assert json.loads(text)["format"] == "VQ<4,8,2> by tiles"
    assert image_of(text)["spilled_bytes"] == [0, 0]
    assert image_of(text)["tables"] == 4
    assert plain != other


@pytest.mark.parametrize(
    ("fmt", "how"),
    [
        ((8, 8, 2), {}),  # a preset
        ((4, 8, 2), {"dtype": FLOAT32}),
        ((4, 8, 2), {"k": 1020}),
        ((4, 8, 2), {"tile": 192}),  # blocks of rows would straddle tiles
        ((3, 8, 2), {}),
        ((4, 17, 2), {}),
        ((4, 8, 5), {}),
    ],
)
def test_nothing_is_generated_where_it_would_not_run(
    lib: ctypes.CDLL, fmt: tuple[int, int, int], how: dict[str, int]
) -> None:
    assert generate(lib, fmt, 90, **how) == (b"", "")


def test_an_unknown_gpu_is_named(lib: ctypes.CDLL) -> None:
    kernels, text = generate(lib, (4, 8, 2), 75)
    assert not kernels
    assert "shared memory of compute capability 7.5" in text


def test_what_is_not_as_it_was_written_is_refused(lib: ctypes.CDLL) -> None:
    kernels, _ = generate(lib, (4, 8, 2), 90)
    for place in (0, 8, 30, len(kernels) // 2, len(kernels) - 1):
        damaged = bytearray(kernels)
        damaged[place] ^= 1
        assert install(lib, bytes(damaged)) == DAMAGED
    for size in (0, 7, 40, len(kernels) - 1):
        assert install(lib, kernels[:size]) == DAMAGED


def test_kernels_of_other_sources_are_refused(lib: ctypes.CDLL) -> None:
    kernels, _ = generate(lib, (4, 8, 2), 90)
    behind = bytes(8) + kernels[24:]  # the digest of the sources, and all that the first digest is of
    digest = 0xCBF29CE484222325
    for byte in behind:
        digest = (digest ^ byte) * 0x100000001B3 % (1 << 64)
    assert install(lib, kernels[:8] + digest.to_bytes(8, "little") + behind) == OTHER_LIBRARY


def _elsewhere(library: Path, cache: Path, libnvrtc: Path | str) -> str:
    """What another process says about VQ<4,8,2> for 9.0."""
    program = (
        "import ctypes, sys\n"
        "lib, long, number = ctypes.CDLL(sys.argv[1]), ctypes.c_int64, ctypes.c_int32\n"
        "text = ctypes.create_string_buffer(16384)\n"
        "lib.graphopt_vq_generate(number(1), long(512), long(1024), number(4), number(8), number(2), long(1 << 30),\n"
        "    long(1 << 30), number(90), None, long(0), text, long(len(text)))\n"
        "print(text.value.decode())\n"
    )
    env = {**os.environ, "GRAPHOPT_CACHE": str(cache), nvrtc.ENVIRONMENT: str(libnvrtc)}
    done = subprocess.run([sys.executable, "-c", program, library], env=env, capture_output=True, text=True, check=True)
    return done.stdout


def test_files_spare_the_compiler_unless_they_are_damaged(
    lib: ctypes.CDLL, library: Path, cache: Path, tmp_path: Path
) -> None:
    _, text = generate(lib, (4, 8, 2), 90)
    (file,) = (cache / "kernels").glob("vq-4-8-2-f16-sm90-*.bin")
    copy = tmp_path / "kernels" / file.name
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert json.loads(_elsewhere(library, tmp_path, "/no/such/libnvrtc.so")) == json.loads(text)
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    copy.write_bytes(damaged)
    said = _elsewhere(library, tmp_path, "/no/such/libnvrtc.so")
    assert said.startswith("VQ<4,8,2> has no kernel compiled ahead of time and none could be generated")
    assert "/no/such/libnvrtc.so, which GRAPHOPT_NVRTC names, cannot be loaded" in said


def _case(name: str, damage: str = "") -> str:
    n, k, v, b, r = 512, 1024, 4, 8, 2
    lines = [f"case {name} VQLinear", f"field bits i {b}", f"field tile_rows i {n}", f"field tile_columns i {k}"]
    shapes = {"f16 x": (3, k), "i8 codes": (n, row_bytes(k // v * r, b)), "f16 books": (1, 1, r, 1 << b, v)}
    shapes |= {"f32 scale": (n,), "f16 bias": (n,)}
    lines += [f"input {operand} {' '.join(map(str, shape))}" for operand, shape in shapes.items()]
    return "\n".join([*lines, damage, "end"])


@pytest.mark.parametrize(("damage", "code"), [("", 0), ("damage kernels", 1)])
def test_a_plugin_keeps_its_kernels_and_refuses_damaged_ones(
    host_v3: Path, library: Path, lib: ctypes.CDLL, tmp_path: Path, damage: str, code: int
) -> None:
    generate(lib, (4, 8, 2), 0)  # for what the library is compiled for, as an engine's build does
    (tmp_path / "cases.txt").write_text(_case("a", damage))
    done = subprocess.run(
        [host_v3, library, tmp_path, "--describe"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("createPlugin failed at run time" in done.stderr) == bool(code)


def _model(path: Path, rng: np.random.Generator, fmt: tuple[int, int, int]) -> Path:
    n, k, (v, b, r) = 256, 512, fmt
    constants = {
        "codes": rng.integers(-128, 128, (n, row_bytes(k // v * r, b)), np.int8),
        "codebooks": rng.standard_normal((1, 1, r, 1 << b, v)).astype(np.float16),
        "scale": rng.random(n, np.float32),
        "bias": rng.standard_normal(n).astype(np.float16),
    }
    node = helper.make_node(
        "VQLinear", ["x", *constants], ["y"], name="l", domain="graphopt", plugin_namespace="graphopt",
        plugin_version="1", bits=b, tile_rows=n, tile_columns=k,
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, k])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, n])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "g", [x], [y], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("graphopt", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.rtx
def test_an_engine_carries_the_kernels(
    library: Path, lib: ctypes.CDLL, tmp_path: Path, rng: np.random.Generator
) -> None:
    kernels, _ = generate(lib, (4, 8, 2), 0)
    built = build(
        _model(tmp_path / "m.onnx", rng, (4, 8, 2)), tmp_path / "m.plan", BuildOptions(flavour="rtx", plugins=library)
    )
    assert not [warning for warning in built.warnings if "VQ<" in warning]
    assert kernels in (tmp_path / "m.plan").read_bytes()


@pytest.mark.rtx
def test_a_build_without_nvrtc_says_so(library: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(tmp_path / "m.onnx", rng, (8, 4, 1))
    env = {**os.environ, "GRAPHOPT_CACHE": str(tmp_path / "empty"), nvrtc.ENVIRONMENT: "/no/such/libnvrtc.so"}
    command = [sys.executable, "-m", "graphopt", "build", model, "--plugins", library, "--flavour", "rtx"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "m.plan"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "VQ<8,4,1> has no kernel compiled ahead of time" in " ".join((done.stdout + done.stderr).split())
    assert MAGIC not in (tmp_path / "m.plan").read_bytes()
