"""What kernels and engines are to reach, and which measured rows do.

python benchmarks/floors.py [FOLDER]          print it as Markdown; FOLDER: default benchmarks/results/h100
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables

Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """A speed to reach.

    Attributes:
        what: the rows, in words.
        file: stem of the result file that holds them.
        takes: whether a row is one of them.
        least: that every row must reach.
        goal: that would be good.
        peer: of which speed a row's is a multiple; the share of the row's own `floor_us` if there is none.
    """

    what: str
    file: str
    takes: Callable[[Row], bool]
    least: float
    goal: float
    peer: str | None = "torch_fp16"

    def reached(self, row: Row) -> float | None:
        """Return what ``row`` reached; None if it is none of these rows, or the peer has no time."""
        if not self.takes(row):
            return None
        if self.peer is None:
            return float(row["floor_us"] / row["us"])
        return row["peers"][self.peer] / row["us"] if self.peer in row["peers"] else None


def rows_like(
    schemes: str, case: str | None = None, *, m: tuple[int, int] | None = None, least: int = 0
) -> Callable[[Row], bool]:
    """Rows in float16 of one of ``schemes`` (split at blanks), with M in ``m``, N and K at least ``least``."""

    def takes(row: Row) -> bool:
        low, high = m or (row.get("M", 0), row.get("M", 0))
        return (
            row["scheme"] in schemes.split()
            and case in (None, row["case"])
            and row.get("dtype", "float16") == "float16"
            and low <= row.get("M", 0) <= high
            and min(row.get("N", least), row.get("K", least)) >= least
        )

    return takes


def decode(scheme: str) -> Callable[[Row], bool]:
    """Rows of attention: decode over long caches of many sequences."""
    return lambda r: r["scheme"] == scheme and r["case"] == "decode" and r["S"] >= 4096 and r["B"] >= 8


def engines(phase: str, *, four_bits: bool) -> Callable[[Row], bool]:
    """Rows of whole engines with weights of 4 bits, or of 8."""
    return lambda r: (
        r["phase"] == phase
        and r["scheme"] != "tensorrt_fp16"
        and (r.get("bits", 16) < 8) == four_bits
        and (r.get("M") == 2048 if phase == "prefill" else r["B"] <= 16)
    )


W8, W4 = "mixq-w8a8", "mixq-w4a8"
ANY, FEW, MANY = 1 << 40, (1, 16), (2048, 1 << 40)
FLOORS = (
    Floor("MixQ w8a8, N and K ≥ 8192, M ≥ 2048", "mixq", rows_like(W8, "linear", m=MANY, least=8192), 1.6, 1.85),
    Floor("the same, M = 512", "mixq", rows_like(W8, "linear", m=(512, 512), least=8192), 1.5, 1.8),
    Floor("the same, M ≤ 16", "mixq", rows_like(W8, "linear", m=FEW, least=8192), 1.7, 1.95),
    Floor("MixQ w8a8, the product, M ≥ 2048, against torch._int_mm", "mixq", rows_like(W8, "gemm", m=MANY, least=8192),
          1.0, 1.5, "torch_int_mm"),
    Floor("MixQ w8a8 against bitsandbytes LLM.int8()", "mixq", rows_like(W8, "linear"), 2.5, 4, "bitsandbytes_int8"),
    Floor("MixQ w4a8, M ≤ 16", "mixq", rows_like(W4, "linear", m=FEW), 2.5, 3.5),
    Floor("MixQ w4a8, M ≥ 2048", "mixq", rows_like(W4, "linear", m=MANY), 1.4, 1.8),
    Floor("MixQ w4a8 against torch int4", "mixq", rows_like(W4, "linear"), 1.0, 1.0, "torch_int4"),
    Floor("quantizing ops, M = 4096, of copy bandwidth", "mixq_quantize", rows_like(W8, m=MANY), 0.8, 0.92, None),
    Floor("VQ of 4 bits, N and K ≥ 8192, M = 1", "vq", rows_like("vq-quip4", m=(1, 1), least=8192), 2.2, 3.2),
    Floor("VQ of 3 bits, the same", "vq", rows_like("vq-aqlm3", m=(1, 1), least=8192), 2.6, 4),
    Floor("VQ of 2 bits, the same", "vq", rows_like("vq-aqlm2 vq-gptvq2", m=(1, 1), least=8192), 3.3, 5.5),
    Floor("VQ of 2 bits against AQLM's 2x8 kernel, the same", "vq", rows_like("vq-aqlm2", m=(1, 1), least=8192), 3, 3,
          "aqlm_2x8"),
    Floor("VQ, M = 16", "vq", rows_like("vq-quip4 vq-aqlm3 vq-aqlm2 vq-gptvq2", m=(16, 16)), 1.5, 2.5),
    Floor("VQ, M ≥ 512", "vq", rows_like("vq-quip4 vq-aqlm3 vq-aqlm2 vq-gptvq2", m=(512, ANY)), 0.9, 1.1),
    Floor(
        "transforms of VQ, M = 4096, of copy bandwidth", "vq_hadamard",
        rows_like("vq-quip4", m=(4096, 4096)), 0.8, 0.92, None,
    ),
    Floor("decode over kv-cq4, B ≥ 8, S ≥ 4096", "attention", decode("kv-cq4"), 2.5, 3.4),
    Floor("decode over kv-cq2, the same", "attention", decode("kv-cq2"), 3.5, 6),
    Floor("decode over kv-mant4, the same", "attention", decode("kv-mant4"), 2.5, 3.4),
    Floor("M-ANT w4a8, M ≤ 16", "mant", rows_like("mant-w4a8", "linear", m=FEW), 2.5, 3.5),
    Floor("M-ANT w4a8, M ≥ 2048", "mant", rows_like("mant-w4a8", "linear", m=MANY), 0.9, 1.05),
    Floor("M-ANT one-pass int8, M ≥ 2048", "mant", rows_like("mant-int8", "linear", m=MANY), 1.4, 1.8),
    Floor("engines, prefill of 2048 tokens, 8 bits", "engine", engines("prefill", four_bits=False), 1.4, 1.8,
          "tensorrt_fp16"),
    Floor("engines, prefill of 2048 tokens, 4 bits", "engine", engines("prefill", four_bits=True), 1.4, 1.8,
          "tensorrt_fp16"),
    Floor("engines, decode, B ≤ 16, 8 bits", "engine", engines("decode", four_bits=False), 1.6, 1.9, "tensorrt_fp16"),
    Floor("engines, decode, B ≤ 16, 4 bits", "engine", engines("decode", four_bits=True), 2.2, 3, "tensorrt_fp16"),
)  # fmt: skip


def name_of(row: Row) -> str:
    """What tells a row from others of the same floor."""
    if "S" in row:
        return f"B = {row['B']}, {row['Hkv']} key heads"
    if "phase" in row:
        return f"{row['scheme']}, {row['case']}"
    size = " × ".join(str(row[name]) for name in ("N", "K") if name in row)
    what = row["case"].removeprefix("MixQ") if "N" not in row else row["scheme"].partition("-")[2]
    return f"{what}, {size}, M = {row['M']}"


def floor_table(folder: Path) -> Iterator[str]:
    """A table with a line for each floor of which there are rows in ``folder``; nothing if there are none."""
    lines = []
    for floor in FLOORS:
        path = folder / f"{floor.file}.json"
        rows: Sequence[Row] = json.loads(path.read_text()) if path.is_file() else []
        taken = {name_of(row): floor.reached(row) for row in rows if floor.takes(row)}
        if not taken:
            continue
        reached = {name: value for name, value in taken.items() if value is not None}
        unit = "{:.0%}" if floor.peer is None else "{:.2f}×"
        missed = [f"{name}: {unit.format(value)}" for name, value in reached.items() if value < floor.least]
        if unjudged := len(taken) - len(reached):
            missed.append(f"{unjudged} not judged, as {floor.peer} was not timed there")
        best = [unit.format(f(reached.values())) for f in (min, max)] if reached else ["", ""]
        met = sum(value >= floor.least for value in reached.values())
        lines.append((
            floor.what, unit.format(floor.least), unit.format(floor.goal), *best, f"{met} of {len(reached)}",
            "; ".join(missed),
        ))  # fmt: skip
    if lines:
        yield from tables.table(("what", "floor", "goal", "least", "most", "reach the floor", "miss it"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=tables.RESULTS)
    print("\n".join(floor_table(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
