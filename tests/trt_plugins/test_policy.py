"""The host-side choice of kernel and tile: every size gets a kernel that covers it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "trt_plugins"
RESULTS = REPOSITORY / "benchmarks/results/h100"
# Below, the second file has more kernels.
MEASURED = [row for row in json.loads((RESULTS / "mixq_linear.json").read_text()) if row["M"] > 64]
MEASURED += json.loads((RESULTS / "mixq_linear_few.json").read_text())
MEASURED_CHAIN = json.loads((RESULTS / "mixq_linear_chain.json").read_text())
H100_MULTIPROCESSORS = 132
SM90_KERNELS = ("small", "128x64-1x1", "128x128-1x1", "128x256-2x1")
SM90_TIMED_FROM = {"small": 1, "128x64-1x1": 1, "128x128-1x1": 1, "128x256-2x1": 65}
MEASURED_W4A8 = json.loads((REPOSITORY / "benchmarks/results/h100/mixq_w4a8.json").read_text())["rows"]
W4A8_KERNELS = ("generic", "small-8", "small-16", "small-32", "tile-64x64", "tile-128x128", "tile-256x128")
SM90_W4_KERNELS = (
    *("few", "wgmma-64x64s2", "wgmma-64x128", "wgmma-64x128s2"),
    *("wgmma-128x64", "wgmma-128x64s2", "wgmma-128x128", "wgmma-128x128s2", "wgmma-256x128"),
)
GENERIC, SMALL_M, TILE_256, TILE_128, TILE_64 = range(5)
WARP_ROW, FEW_ROW, BLOCK_ROW, REREAD = range(4)
REGISTER_WARPS = 32  # per multiprocessor, at the 64 registers that the kernels are compiled for
TILES = {TILE_256: (256, 128), TILE_128: (128, 128), TILE_64: (64, 64)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("policy") / "policy"
    command = [compiler, "-std=c++17", "-Wall", "-Werror", "-I", ROOT, ROOT / "tests/policy.cpp", "-o", path]
    subprocess.run(command, check=True)
    return path


def _ask(program: Path, lines: list[str]) -> list[tuple[int, ...]]:
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("m", "n", "k", "tokens", "split"),
    [
        (64, 8192, 8192, 64, 2),
        (64, 28672, 8192, 64, 1),
        (64, 8192, 28672, 64, 2),
        (64, 4096, 4096, 64, 4),
        (65, 8192, 8192, 128, 2),
        (128, 4096, 4096, 64, 2),
        (256, 8192, 8192, 128, 1),
    ],
)
def test_mant_divides_k_where_tiles_are_few(program: Path, m: int, n: int, k: int, tokens: int, split: int) -> None:
    assert _ask(program, [f"mant_mid {m} {n} {k} {H100_MULTIPROCESSORS}"])[0][:2] == (tokens, split)


def test_mant_never_divides_one_stage(program: Path, rng: np.random.Generator) -> None:
    sizes = [[int(v) for v in row] for row in rng.integers((33, 1, 1), (257, 40000, 40000), (300, 3))]
    chosen = _ask(program, [f"mant_mid {m} {n} {k} {H100_MULTIPROCESSORS}" for m, n, k in sizes])
    for (m, _, k), (tokens, split, _) in zip(sizes, chosen, strict=True):
        assert tokens == 64 or (tokens == 128 and m > 64)
        assert split in (1, 2, 4, 8)
        assert split == 1 or split <= -(-k // 64)


def test_slabs_of_written_weights_fit_their_workspace(program: Path, rng: np.random.Generator) -> None:
    """Rows are those of whole tiles, no more than the workspace holds, and never estimated to be slower."""
    sizes = [
        (int(size), int(m), 8 * int(n), 16 * int(k), int(s))
        for size, m, n, k, s in zip(
            rng.choice([1, 2], 2000),
            np.exp(rng.uniform(np.log(97), 11, 2000)),
            np.exp(rng.uniform(0, 10, 2000)),
            np.exp(rng.uniform(0, 10, 2000)),
            rng.choice([78, 114, 132], 2000),
            strict=True,
        )
    ]
    chosen = _ask(program, [f"slab {size} {m} {n} {k} {s}" for size, m, n, k, s in sizes])
    for (size, _, n, k, _), (rows, most, expanded, folded) in zip(sizes, chosen, strict=True):
        assert 0 <= rows <= most <= n
        assert rows % 256 == 0 or rows == n
        assert most * k * size <= 64 << 20
        assert rows == 0 or expanded <= folded
    assert {rows > 0 for rows, *_ in chosen} == {True, False}


@pytest.mark.parametrize(
    ("size", "m", "n", "k", "written"),
    [
        *((size, m, n, n, True) for size in (1, 2) for m in (2048, 4096) for n in (4096, 8192)),
        *((size, m, 28672, 8192, True) for size in (1, 2) for m in (2048, 4096)),
        *((size, 4096, 8192, 28672, True) for size in (1, 2)),
        *((size, 512, 4096, 4096, True) for size in (1, 2)),
        (1, 2048, 8192, 28672, True),
        (2, 2048, 8192, 28672, False),
        *((size, 512, n, k, False) for size in (1, 2) for n, k in ((8192, 8192), (28672, 8192), (8192, 28672))),
    ],
)
def test_weights_are_written_out_where_that_was_measured_to_be_faster(
    program: Path, size: int, m: int, n: int, k: int, written: bool
) -> None:
    rows, *_ = _ask(program, [f"slab {size} {m} {n} {k} {H100_MULTIPROCESSORS}"])[0]
    assert (rows > 0) == written


def test_weights_too_long_for_the_workspace_are_not_written_out(program: Path) -> None:
    (answer,) = _ask(program, [f"slab 2 4096 8192 {1 << 18} {H100_MULTIPROCESSORS}"])
    assert answer[:2] == (0, 0)


def test_blocks_of_decode_end_where_segments_end(program: Path, rng: np.random.Generator) -> None:
    segments, tiles = rng.integers(1, 700, 3000), rng.integers(1, 300, 3000)
    grids = np.minimum(rng.choice([84, 108, 132, 264], 3000), segments * tiles)
    sizes = np.stack([grids, segments, tiles], 1).tolist()
    chosen = _ask(program, [f"even_blocks {b} {s} {t}" for b, s, t in sizes])
    for (blocks, count, length), (even,) in zip(sizes, chosen, strict=True):
        assert 1 <= even <= blocks
        share, even_share = -(-count * length // blocks), -(-count * length // even)
        assert even_share <= share + share // 32
        if even != blocks:  # every boundary of segments is one of blocks, or the other way round
            firsts = {count * length * block // even for block in range(even + 1)}
            ends = set(range(0, count * length + 1, length))
            assert firsts <= ends or ends <= firsts


@pytest.mark.parametrize(
    ("blocks", "segments", "tiles", "even"),
    [(132, 64, 32, 128), (132, 512, 16, 128), (132, 8, 32, 128), (132, 256, 1, 128), (264, 64, 32, 256),
     (132, 132, 7, 132), (132, 5, 1, 5), (132, 67, 40, 132)],
)  # fmt: skip
def test_blocks_of_decode_of_usual_sizes(program: Path, blocks: int, segments: int, tiles: int, even: int) -> None:
    assert _ask(program, [f"even_blocks {min(blocks, segments * tiles)} {segments} {tiles}"]) == [(even,)]
