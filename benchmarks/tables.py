"""Print the tables of benchmark results as Markdown, for READMEs.

python benchmarks/tables.py [FOLDER]          FOLDER: default benchmarks/results/h100
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results/h100"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def speed(row: dict, peer: str) -> str:
    """How many times as fast as the peer, or nothing."""
    return f"{row['peers'][peer] / row['us']:.2f}×" if peer in row["peers"] else ""


def is_bfloat16(row: dict) -> bool:
    return row.get("dtype") == "bfloat16"


def linear_table(rows: Sequence[dict]) -> Iterator[str]:
    """The whole linear beside its peers, and the product alone beside its own."""
    cases = {(r["case"], r["scheme"], is_bfloat16(r), r["N"], r["K"], r["M"]): r for r in rows}
    head = ("scheme", "N × K", "M", "linear, us", "torch 16-bit", "torch int4", "bitsandbytes int8", "of the floor",
            "product alone, us", "TOPS", "torch._int_mm", "of the floor")  # fmt: skip
    lines = []
    for (case, scheme, bfloat16, n, k, m), whole in cases.items():
        if case != "linear":
            continue
        gemm = cases["gemm", scheme, bfloat16, n, k, m]
        lines.append((
            scheme.removeprefix("mixq-") + (", bf16" if bfloat16 else ""), f"{n} × {k}", str(m), f"{whole['us']:.1f}",
            speed(whole, "torch_bf16" if bfloat16 else "torch_fp16"), speed(whole, "torch_int4"),
            speed(whole, "bitsandbytes_int8"), f"{whole['floor_us'] / whole['us']:.0%}", f"{gemm['us']:.1f}",
            f"{2 * m * n * k / gemm['us'] * 1e-6:.0f}", speed(gemm, "torch_int_mm"),
            f"{gemm['floor_us'] / gemm['us']:.0%}",
        ))  # fmt: skip
    yield from table(head, sorted(lines, key=lambda line: line[0], reverse=True))


def quantize_table(rows: Sequence[dict]) -> Iterator[str]:
    """Time at few tokens; time and share of copy bandwidth at many."""
    (bfloat16,) = {(r["M"], r["K"]) for r in rows if is_bfloat16(r)} or {None}
    in_bfloat16 = {r["case"]: r for r in rows if is_bfloat16(r)}
    rows = [r for r in rows if not is_bfloat16(r)]
    few, many = min(r["M"] for r in rows), max(r["M"] for r in rows)
    columns = sorted({r["K"] for r in rows})
    by_size = {(r["case"], r["K"], r["M"]): r for r in rows}
    head = ["op", *(f"M={few}, K={k}, us" for k in columns), *(f"M={many}, K={k}" for k in columns)]
    head += [f"bf16, M={bfloat16[0]}, K={bfloat16[1]}"] if bfloat16 else []
    lines = []
    for op in dict.fromkeys(r["case"] for r in rows):
        small = [f"{by_size[op, k, few]['us']:.1f}" for k in columns]
        large = [by_size[op, k, many] for k in columns] + ([in_bfloat16[op]] if bfloat16 else [])
        lines.append([op, *small, *(f"{r['us']:.0f} us, {r['floor_us'] / r['us']:.0%}" for r in large)])
    yield from table(head, lines)


def counters_table(rows: Sequence[dict]) -> Iterator[str]:
    """What each kernel is busy with, and what its warps wait for."""
    head = (
        "kernel",
        "M",
        "N × K",
        "us",
        "memory",
        "tensor cores",
        "instructions issued",
        "warps that wait, for each instruction",
    )
    lines = []
    for r in rows:
        op = r["case"] if "N" not in r else f"linear, {r['scheme'].removeprefix('mixq-')}"
        waits = ", ".join(f"{reason.replace('_', ' ')} {value}" for reason, value in list(r["stalls"].items())[:4])
        shares = (f"{r[name]:.0%}" for name in ("dram", "tensor", "issued"))
        size = f"{r['N']} × {r['K']}" if "N" in r else f"{r['K']}"
        lines.append((op, str(r["M"]), size, f"{r['us']:.1f}", *shares, waits))
    yield from table(head, lines)


TABLES = {"mixq": linear_table, "mixq_quantize": quantize_table}


def caption(row: dict) -> str:
    return (
        f"{row['gpu']}, driver {row['driver']}, CUDA {row['cuda']}, torch {row['torch']}; commit {row['commit']}, "
        f"{row['date']}; copies {row['copy_tb_s']} TB/s, fp16 products {row['fp16_tflop_s']} TFLOP/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    folder = parser.parse_args().folder
    found = [(name, folder / f"{name}.json") for name in TABLES if (folder / f"{name}.json").is_file()]
    if not found:
        print(f"{folder} holds none of {', '.join(f'{n}.json' for n in TABLES)}", file=sys.stderr)
        return 2
    for name, path in found:
        rows = json.loads(path.read_text())
        print(f"{caption(rows[0])}\n")
        print("\n".join(TABLES[name](rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
