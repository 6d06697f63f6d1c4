"""The host-side choice of kernel and tile: every size gets a kernel that covers it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "trt_plugins"
MEASURED = json.loads((REPOSITORY / "benchmarks/results/h100/mixq_linear.json").read_text())
H100_MULTIPROCESSORS = 132
SM90_KERNELS = ("small", "128x64-1x1", "128x128-1x1", "128x256-2x1")
SM90_TIMED_FROM = {"small": 1, "128x64-1x1": 9, "128x128-1x1": 65, "128x256-2x1": 65}
GENERIC, SMALL_M, TILE_256, TILE_128, TILE_64 = range(5)
WARP_ROW, BLOCK_ROW, LONG_ROW, REREAD = range(4)
VECTORS_PER_THREAD = {WARP_ROW: 4, BLOCK_ROW: 4, LONG_ROW: 8}
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


def test_linear_kernels_fit_their_sizes(program: Path, rng: np.random.Generator) -> None:
    sizes = [
        (int(m), int(n), int(v), int(s))
        for m, n, v, s in zip(
            np.exp(rng.uniform(0, 12, 2000)),
            np.exp(rng.uniform(0, 12, 2000)),
            rng.random(2000) < 0.9,
            rng.choice([20, 46, 84, 108, 132, 170], 2000),
            strict=True,
        )
    ]
    chosen = _ask(program, [f"linear {m} {n} {v} {s}" for m, n, v, s in sizes])
    for (m, n, vectors, multiprocessors), (kernel,) in zip(sizes, chosen, strict=True):
        if not vectors:
            assert kernel == GENERIC
        elif m <= 16:
            assert kernel == SMALL_M
        else:
            rows, columns = TILES[kernel]
            if kernel != TILE_64:
                assert -(-m // rows) * -(-n // columns) >= multiprocessors
    assert {kernel for (kernel,) in chosen} == {GENERIC, SMALL_M, TILE_256, TILE_128, TILE_64}


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['M']}-{row['N']}-{row['K']}")
def test_the_hopper_kernel_is_within_5_percent_of_the_fastest(program: Path, row: dict) -> None:
    question = f"sm90 {row['M']} {row['N']} {row['K']} {row['C']} {H100_MULTIPROCESSORS}"
    ((chosen,),) = _ask(program, [question])
    times = row["variants"]
    assert set(times) <= set(SM90_KERNELS)
    assert times[SM90_KERNELS[chosen]] <= 1.05 * min(times.values())
    assert (row["kernel"], row["us"]) == (SM90_KERNELS[chosen], times[SM90_KERNELS[chosen]]), "remake the results"


def test_hopper_kernels_run_only_where_they_can(program: Path, rng: np.random.Generator) -> None:
    sizes = np.exp(rng.uniform(0, 12, (2000, 3))).astype(int) + 1
    sizes[::4, 0] = rng.integers(1, 130, 500)
    multiprocessors = rng.choice([2, 78, 114, 132, 144], 2000)
    lines = [f"sm90 {m} {8 * n} {16 * k} 128 {s}" for (m, n, k), s in zip(sizes, multiprocessors, strict=True)]
    chosen = [SM90_KERNELS[kernel] for (kernel,) in _ask(program, lines)]
    for m, name in zip(sizes[:, 0], chosen, strict=True):
        assert m >= SM90_TIMED_FROM[name]
        assert name != "small" or m <= 16
    assert set(chosen) == set(SM90_KERNELS)


def test_a_quantize_plan_covers_the_row(program: Path, rng: np.random.Generator) -> None:
    sizes = [
        (int(m), int(k), int(v), int(a), 132)
        for m, k, v, a in zip(
            np.exp(rng.uniform(0, 12, 2000)),
            np.exp(rng.uniform(0, 11, 2000)) // 8 * 8 + (rng.random(2000) < 0.1) + 1 - (rng.random(2000) < 0.85),
            rng.choice([4, 8], 2000),
            rng.random(2000) < 0.9,
            strict=True,
        )
        if k >= 1
    ]
    plans = _ask(program, ["quantize " + " ".join(map(str, size)) for size in sizes])
    for (m, k, per_vector, aligned, multiprocessors), (kernel, threads, rows, blocks) in zip(sizes, plans, strict=True):
        assert 1 <= blocks <= -(-m // rows)
        assert blocks <= multiprocessors * 64
        assert threads % 32 == 0
        assert threads * rows <= 512
        if kernel == REREAD:
            assert not aligned or k % per_vector or k > 512 * 8 * per_vector
            continue
        assert aligned
        assert k % per_vector == 0
        assert threads * VECTORS_PER_THREAD[kernel] * per_vector >= k
        assert (threads - 32) * VECTORS_PER_THREAD[kernel] * per_vector < k
        assert (kernel == WARP_ROW) == (threads == 32)
    assert {plan[0] for plan in plans} == {WARP_ROW, BLOCK_ROW, LONG_ROW, REREAD}
