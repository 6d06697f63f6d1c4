"""Index arithmetic of the kernel that looks up products of 4096 entries, on the host: sm90_wide_layout.h."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2] / "trt_plugins"
CODES, ENTRIES, GROUPS = 16, 4096, 8
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "vq/linear/sm90_wide_layout.h"
using namespace graphopt::vq;

int main(int count, char** argument) {
  if (count == 4) {
    WideWalk const walk{std::atoi(argument[1]), std::atoi(argument[2]), std::atoi(argument[3])};
    for (int cluster = 0; cluster < walk.clusters; ++cluster)
      for (int i = 0; i < walk.count(cluster); ++i)
        std::printf("%d %d %d\\n", cluster, walk.place(cluster, i).set, walk.place(cluster, i).unit);
    return 0;
  }
  for (int group = 0; group < kWideGroups; ++group)
    for (int residual = 0; residual < 2; ++residual)
      for (int entry = 0; entry < kWideEntries; ++entry) std::printf("%d\\n", wide_place(group, residual, entry));
  for (int tile = 0; tile < 8; ++tile)
    for (int column = 0; column < 8; ++column) std::printf("%d\\n", wide_entry(tile, column));
  std::printf("%u\\n", kWideCodeMask);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on the PATH")
    folder = tmp_path_factory.mktemp("wide")
    source, program = folder / "wide.cpp", folder / "wide"
    source.write_text(PROGRAM)
    subprocess.run([compiler, "-std=c++17", f"-I{ROOT}", str(source), "-o", str(program)], check=True)
    return program


def _numbers(program: Path, *arguments: int) -> list[list[int]]:
    done = subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, text=True)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def printed(program: Path) -> list[list[int]]:
    return _numbers(program)


def _places(printed: list[list[int]]) -> np.ndarray:
    """Byte of the product of [group, residual, entry]."""
    return np.array(printed[: CODES * ENTRIES]).reshape(GROUPS, 2, ENTRIES)


def test_every_product_has_a_place_of_its_own(printed: list[list[int]]) -> None:
    places = np.sort(_places(printed), axis=None)
    np.testing.assert_array_equal(places, 2 * np.arange(CODES * ENTRIES))


def test_tiles_are_all_entries_and_give_a_lane_runs_of_them(printed: list[list[int]]) -> None:
    entries = np.array(printed[CODES * ENTRIES : -1]).reshape(8, 8)  # [tile, column]
    np.testing.assert_array_equal(np.sort(entries, axis=None), np.arange(64))
    mine = entries.reshape(2, 4, 4, 2)  # [run, tile, lane t, columns 2 t and 2 t + 1]
    for run in mine.swapaxes(1, 2).reshape(-1, 8):
        np.testing.assert_array_equal(run, run[0] + np.arange(8))
        assert run[0] % 8 == 0


def test_codes_lead_to_their_products(printed: list[list[int]]) -> None:
    """What the kernel's shifts and mask make of a code: its bit 0 goes to bit 1."""
    places, (mask,) = _places(printed), printed[-1]
    codes = np.random.default_rng(5).integers(0, ENTRIES, (GROUPS, 2))
    row = sum(int(code) << (12 * i) for i, code in enumerate(codes.flat))
    for i, code in enumerate(codes.flat):
        group, residual = divmod(i, 2)
        address = (row << 1 >> 12 * i & mask) + places[group, residual, 0]
        assert address == places[group, residual, code]


@pytest.mark.parametrize(
    ("sets", "units", "clusters"),
    [(64, 56, 64), (32, 8, 64), (224, 16, 66), (1, 3, 3), (67, 1, 66), (5, 7, 3), (448, 16, 132), (2, 1, 2)],
)
def test_clusters_share_all_units_evenly(program: Path, sets: int, units: int, clusters: int) -> None:
    work = np.array(_numbers(program, sets, units, clusters))
    places = sorted((int(s), int(u)) for _, s, u in work)
    assert places == [(s, u) for s in range(sets) for u in range(units)]
    counts = np.bincount(work[:, 0], minlength=clusters)
    assert counts.min() > 0
    assert counts.max() - counts.min() <= 1
    for cluster in range(clusters):  # units of a set follow each other: its table is made once
        mine = work[work[:, 0] == cluster, 1]
        assert (np.diff(mine) >= 0).all()
