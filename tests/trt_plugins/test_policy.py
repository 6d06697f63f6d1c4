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


@pytest.mark.parametrize("row", MEASURED_CHAIN, ids=lambda row: f"{row['M']}-{row['N']}-{row['K']}")
def test_the_hopper_kernel_is_the_fastest_that_starts_under_the_quantizing_one(program: Path, row: dict) -> None:
    ((chosen,),) = _ask(program, [f"sm90 {row['M']} {row['N']} {row['K']} {row['C']} {H100_MULTIPROCESSORS}"])
    assert row["variants"][SM90_KERNELS[chosen]] == min(row["variants"].values())


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


@pytest.mark.parametrize("row", MEASURED_W4A8, ids=lambda row: f"{row['M']}-{row['N']}-{row['K']}")
def test_the_4_bit_kernel_is_within_8_percent_of_the_fastest(program: Path, row: dict) -> None:
    size = f"{row['M']} {row['N']}"
    ((chosen,),) = _ask(program, [f"sm90_w4 {size} {row['K']} {row['C']} {H100_MULTIPROCESSORS}"])
    kernel = SM90_W4_KERNELS[chosen]
    if kernel == "few":
        ((small,),) = _ask(program, [f"w4a8 {min(row['M'], 32)} {row['N']} 1 {H100_MULTIPROCESSORS}"])
        kernel = W4A8_KERNELS[small]
    assert row["us"][kernel] <= 1.08 * min(row["us"].values())


def test_4_bit_kernels_fit_their_sizes(program: Path, rng: np.random.Generator) -> None:
    sizes = np.exp(rng.uniform(0, 12, (2000, 2))).astype(int)
    vectors, multiprocessors = rng.random(2000) < 0.9, rng.choice([20, 46, 84, 108, 132, 170], 2000)
    asked = [tuple(map(int, size)) for size in zip(*sizes.T, vectors, multiprocessors, strict=True)]
    chosen = [W4A8_KERNELS[k] for (k,) in _ask(program, [f"w4a8 {m} {n} {v} {s}" for m, n, v, s in asked])]
    for (m, n, fits, count), name in zip(asked, chosen, strict=True):
        kind, _, tokens = name.partition("-")
        assert (name == "generic") == (not fits)
        if kind == "small":
            assert m <= int(tokens)
        elif kind == "tile":
            rows, columns = map(int, tokens.split("x"))
            assert m > 32
            assert rows == 64 or -(-m // rows) * -(-n // columns) >= count
    assert set(chosen) == set(W4A8_KERNELS)


def test_a_quantize_plan_covers_the_row_and_fits_the_device(program: Path, rng: np.random.Generator) -> None:
    count = 3000
    columns = np.exp(rng.uniform(0, 11, count)) // 8 * 8 + (rng.random(count) < 0.1) + 1 - (rng.random(count) < 0.85)
    sizes = [
        tuple(map(int, size))
        for size in zip(
            np.exp(rng.uniform(0, 12, count)),  # M
            columns,  # K
            16 * np.exp(rng.uniform(0, 6, count)).astype(int),  # C
            rng.choice([2, 4], count),  # bytes of T
            rng.choice([1, 2], count),  # inputs
            rng.choice([0, 1, 2], count),  # gamma, beta
            rng.random(count) < 0.9,  # aligned
            rng.choice([20, 84, 108, 132, 170], count),  # multiprocessors
            rng.choice([100, 164, 228], count),  # KiB of shared memory
            strict=True,
        )
        if size[1] >= 1
    ]
    plans = _ask(program, ["quantize " + " ".join(map(str, size)) for size in sizes])
    for size, (kernel, threads, teams, blocks, ahead, shared) in zip(sizes, plans, strict=True):
        m, k, c, element, inputs, parameters, aligned, multiprocessors, kib = size
        vectors, most = k * element // 16, (kib - 1) * 1024
        assert 1 <= blocks <= -(-m // teams)
        assert threads % 32 == 0
        assert not ahead or kernel == BLOCK_ROW
        outliers = 16 * c + 8 * c + 4 * vectors  # masks, and where outliers are
        few = m <= 2 * multiprocessors and vectors <= 2048
        if kernel == REREAD:
            outliers += 16 * c * (4 if vectors <= (64 if few else 128) else 2)
            kept = 0 if few or vectors <= 128 else 64 * 32 * -(-vectors // 128) * parameters
            assert not aligned or k * element % 16 or vectors > 4096 or outliers + kept > most - 2 * 1024 - 16
            assert shared == 0
            continue
        assert aligned
        assert k * element % 16 == 0
        per_thread = 2 if few else 4
        assert few or kernel != FEW_ROW
        assert (threads - 32) * per_thread < vectors <= threads * per_thread
        assert (kernel == WARP_ROW) == (threads == 32)
        outliers += 16 * c * (4 if kernel == WARP_ROW else 2 * teams)
        kept = 64 * threads * (parameters + (inputs * teams if ahead else 0)) if kernel == BLOCK_ROW else 0
        assert outliers + kept <= shared <= outliers + kept + 16
        assert shared <= most - 1024
        assert threads * teams <= REGISTER_WARPS * 32
        if kernel == BLOCK_ROW:
            assert blocks <= multiprocessors
            assert not ahead or m > blocks * teams
        elif kernel == WARP_ROW:
            assert -(-blocks // multiprocessors) * (shared + 1024) <= kib * 1024
    assert {plan[0] for plan in plans} == {WARP_ROW, FEW_ROW, BLOCK_ROW, REREAD}
    assert {plan[4] for plan in plans} == {0, 1}


PLAIN, ADD_RMS_NORM, GATED_SILU = 0, 2, 5
SLOT, WARP_CHANNELS = 256, 1024


@pytest.mark.parametrize("shared_kib", [99, 227])
def test_transforms_cover_every_channel_once(program: Path, rng: np.random.Generator, shared_kib: int) -> None:
    producers, rows = rng.choice([PLAIN, ADD_RMS_NORM, GATED_SILU], 400), rng.integers(1, 9000, 400)
    blocks, counts = 1 << rng.integers(6, 16, 400), rng.integers(1, 40, 400)
    cases = list(zip(producers, rows, blocks * counts, blocks, strict=True))
    lines = [f"hadamard {p} {m} {k} {k} {b} 2 1 {shared_kib}" for p, m, k, b in cases]
    for (producer, m, k, block), plan in zip(cases, _ask(program, lines), strict=True):
        fits, units, parts, threads, block_units, block_warps, shared = plan
        norm = producer == ADD_RMS_NORM
        if not fits:
            assert block * 4 > (shared_kib - 4) * 1024 or (norm and k > 8 * WARP_CHANNELS)
            continue
        channels = threads // 32 * WARP_CHANNELS
        assert threads * block_units <= 1024
        assert threads <= (512 if norm else 1024)
        assert block_warps == max(1, block // WARP_CHANNELS)
        assert threads // 32 % block_warps == 0  # a block of H has all of its warps
        assert channels % block == 0 or block <= SLOT * 4
        assert (parts - 1) * channels < k <= parts * channels
        assert parts == 1 or not norm
        assert units == m * parts
        assert shared == (block_units * threads * 128 if block_warps > 1 else 0)
        assert shared <= (shared_kib - 2) * 1024


def test_what_rows_in_registers_cannot_take(program: Path) -> None:
    lines = [
        "hadamard 0 4 4096 4096 4096 2 1 227",
        "hadamard 0 4 4096 4096 4096 4 1 227",  # float32
        "hadamard 0 4 4096 4096 4096 2 0 227",  # misaligned
        "hadamard 0 4 1000 1024 64 2 1 227",  # padded
        "hadamard 0 4 4096 4096 32 2 1 227",  # blocks smaller than what tensor cores transform
        "hadamard 0 4 65536 65536 65536 2 1 227",  # a block larger than a thread block
    ]
    assert [plan[0] for plan in _ask(program, lines)] == [1, 0, 0, 0, 0, 0]


FUSED_FEW, FUSED_ROWS, FUSED_WARP, FUSED_FLAT, FUSED_REREAD = range(5)


def test_fused_kernels_cover_every_element_once(program: Path, rng: np.random.Generator) -> None:
    producers, rows = rng.choice([ADD_RMS_NORM, GATED_SILU], 600), 1 << rng.integers(0, 14, 600)
    columns, sizes = rng.integers(1, 5000, 600) * rng.choice([1, 8], 600), rng.choice([2, 4], 600)
    cases = list(zip(producers, rows + rng.integers(0, 3, 600), columns, sizes, strict=True))
    plans = _ask(program, [f"fused {p} {m} {k} {size} 1 132" for p, m, k, size in cases])
    for (producer, m, k, size), (kernel, threads, teams, blocks) in zip(cases, plans, strict=True):
        vector = 16 // size
        assert threads % 32 == 0
        assert threads * teams <= 1024
        if kernel == FUSED_REREAD:
            elements = k if producer == ADD_RMS_NORM else m * k
            assert elements % vector != 0 or (producer == ADD_RMS_NORM and k > 1024 * 4 * vector)
            assert blocks == min(m, 8 * 132)
        elif producer == GATED_SILU:
            assert kernel == FUSED_FLAT
            assert (blocks - 1) * threads * 2 < m * k // vector <= blocks * threads * 2
        else:
            few = m <= 2 * 132 and k // vector <= 1024 * 2
            assert kernel == (FUSED_FEW if few else FUSED_WARP if threads == 32 else FUSED_ROWS)
            assert teams == (4 if kernel == FUSED_WARP else 1)  # rows of several warps share no barrier
            held = 2 if few else 4
            assert (threads - 32) * held < k // vector <= threads * held
            assert (blocks - 1) * teams < m <= blocks * teams
    assert {plan[0] for plan in plans} == {FUSED_FEW, FUSED_ROWS, FUSED_WARP, FUSED_FLAT, FUSED_REREAD}
    assert _ask(program, ["fused 2 4 4096 2 0 132"])[0][0] == FUSED_REREAD  # misaligned


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
