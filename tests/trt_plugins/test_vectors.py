"""Whole vectors of weights and the order of X that goes with them, on the host: vq/linear/sm90_vectors.cuh."""

import re
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.passes.vq import e8
from tests.support import emulation

TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def _twice(name: str, source: str) -> str:
    """Half of a word, twice, by a permutation instead of assembly that moves halves."""
    if name != "vq/linear/lattice.cuh":
        return source
    body = r"\1 return permute_bytes(word, 0, half == 0 ? 0x1010u : 0x3232u); }"
    changed, count = re.subn(r"(uint32_t twice\(uint32_t word, int half\) \{).*?\n\}", body, source, flags=re.DOTALL)
    assert count == 1
    return changed


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.build(tmp_path_factory.mktemp("vectors"), "vectors", _twice)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 64), (4, 8), (13, 64), (16, 56), (17, 40), (32, 64), (37, 64), (64, 64), (100, 64), (128, 24)],
)
@pytest.mark.parametrize("name", TYPES)
def test_stage_multiplies_as_its_definition(program: Path, tmp_path: Path, name: str, rows: int, columns: int) -> None:
    random = np.random.default_rng(rows)
    x = random.standard_normal((rows, columns)).astype(TYPES[name])
    x[:, 5] *= TYPES[name].type(20)
    codes = random.integers(0, 1 << 16, (64, 8, 2), dtype=np.uint16)
    ratios = np.array(e8.RATIOS, np.float32)
    for file, array in (("x", x), ("codes", codes), ("ratios", ratios)):
        array.tofile(tmp_path / file)
    subprocess.run([program, tmp_path, name, str(rows), str(columns), str(rows)], check=True)
    points = e8.decode_points(codes.astype(np.int64)).reshape(64, 8, 2, 8).astype(np.float64)
    ratio = np.float64(np.float32(ratios[1] / ratios[0]).astype(TYPES[name]))
    w = (points[:, :, 0] + points[:, :, 1] * ratio).astype(np.float32).astype(TYPES[name]).reshape(64, 64)
    expected = x.astype(np.float64) @ w[:, :columns].astype(np.float64).T
    y = np.fromfile(tmp_path / "y", np.float32).reshape(rows, 64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
