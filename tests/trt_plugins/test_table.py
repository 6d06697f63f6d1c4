"""Products looked up for one token, thread by thread on the host: the table kernel as it is, against float64."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.support import emulation

HALF, BFLOAT = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
NAMES = {HALF: "f16", BFLOAT: "bf16"}
VECTOR = {"gptvq2": 4, "aqlm2": 8}
RESIDUALS = {"gptvq2": 1, "aqlm2": 2}


@dataclass(frozen=True)
class Case:
    """One linear; ``tile`` are the rows and columns that share a codebook, 0: all."""

    name: str
    n: int
    k: int
    blocks: int
    tile: tuple[int, int] = (0, 0)
    dtype: np.dtype = HALF

    def tiles(self) -> tuple[int, int]:
        return self.tile[0] or self.n, self.tile[1] or self.k

    def __str__(self) -> str:
        return f"{self.name}-{self.n}x{self.k}-{self.blocks}-{self.tile[0]}-{NAMES[self.dtype]}"


CASES = (
    Case("gptvq2", 256, 512, 1, (256, 256)),
    Case("gptvq2", 520, 1544, 4, (256, 256)),  # a block begins in the middle of rows; rows and columns are ragged
    Case("gptvq2", 8, 8, 1, (256, 256), BFLOAT),
    Case("gptvq2", 520, 1032, 5, (512, 512), BFLOAT),  # several blocks of rows and slices share a codebook
    Case("gptvq2", 264, 1304, 3),
    Case("aqlm2", 264, 520, 2),
    Case("aqlm2", 136, 1032, 5, dtype=BFLOAT),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.build(tmp_path_factory.mktemp("table"), "table")


def excess(program: Path, case: Case, folder: Path, seed: int = 1) -> float:
    """Run a case; return the largest error as a multiple of its bound."""
    rng = np.random.default_rng(case.n + case.k)
    v, r, (rows, columns) = VECTOR[case.name], RESIDUALS[case.name], case.tiles()
    positions = case.k // v
    x = rng.standard_normal(case.k)
    x[rng.integers(0, case.k, 1 + case.k // 100)] *= 20
    down, across = -(-case.n // rows), -(-case.k // columns)
    books = rng.standard_normal((down, across, r, 256, v)).astype(np.float16)
    codes = rng.integers(0, 256, (case.n, -(-case.k // 4 // 16) * 16), np.uint8)
    for name, array in {"x": x.astype(case.dtype), "books": books, "codes": codes}.items():
        (folder / name).write_bytes(array.tobytes())
    sizes = (case.n, case.k, rows, columns, case.blocks, seed)
    command = [program, folder, case.name, NAMES[case.dtype], *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    at = codes[:, : positions * r].reshape(case.n, positions, r)
    g, h = np.arange(case.n)[:, None] // rows, np.arange(positions)[None] * v // columns
    entries = books.astype(case.dtype).astype(np.float64)  # as they are multiplied
    weight = sum(entries[g, h, i, at[:, :, i]] for i in range(r)).reshape(case.n, case.k)
    exact = weight @ x.astype(case.dtype).astype(np.float64)
    bound = 2.0**-20 * (np.abs(weight) @ np.abs(x)) + 1e-6
    y = np.frombuffer((folder / "y").read_bytes(), np.float32)
    return float(np.nan_to_num(np.abs(y - exact) / bound, nan=np.inf).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(table: Path, case: Case, tmp_path: Path) -> None:
    assert excess(table, case, tmp_path) <= 1


def test_order_of_threads_changes_nothing(table: Path, tmp_path: Path) -> None:
    outputs = set()
    for seed in range(3):
        excess(table, CASES[1], tmp_path, seed)
        outputs.add((tmp_path / "y").read_bytes())
    assert len(outputs) == 1


def test_a_barrier_that_is_missing_shows(tmp_path: Path) -> None:
    def change(name: str, source: str) -> str:
        old = "make_table(table_);\n    __syncthreads();"
        assert name != "vq/linear/kernel_table.cuh" or old in source
        return source.replace(old, "make_table(table_);")

    program = emulation.build(tmp_path, "table", change)
    assert max(excess(program, CASES[1], tmp_path, seed) for seed in range(3)) > 1
