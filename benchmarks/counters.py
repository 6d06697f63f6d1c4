"""Hardware counters of MixQ's kernels: what each waits for. Runs itself under ncu.

python3 benchmarks/counters.py --json FILE       on a GPU; GRAPHOPT_PLUGIN_LIBRARY names the library
python3 benchmarks/counters.py --read CSV        print what an earlier `ncu --csv --page raw` saw
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.bench.capi import Library
from graphopt.bench.mixq_linear import LinearCase, Operands
from graphopt.bench.mixq_quantize import QuantizeCase, QuantizeOperands
from graphopt.bench.record import environment
from graphopt.results import write_rows

CASES: tuple[LinearCase | QuantizeCase, ...] = (
    *(LinearCase(m, n, 4096, scheme="w4a8") for m, n in ((1, 4096), (16, 4096), (128, 4096), (512, 4096))),
    *(LinearCase(m, 4096, 4096) for m in (1, 16)),
    *(LinearCase(m, 8192, 8192) for m in (1, 16)),
    LinearCase(16, 8192, 8192, scheme="w4a8"),
    LinearCase(512, 28672, 8192),
    *(QuantizeCase(op, 4096, k) for op in ("MixQRMSNorm", "MixQLayerNorm") for k in (4096, 11008)),
    *(QuantizeCase(op, 4096, 4096) for op in ("MixQGeGLU", "MixQGelu", "MixQAddLayerNorm")),
)
#: Names of kernels that CASES launch, one each.
KERNELS = "regex:^(quantize_|linear_)"
#: Columns of the result: metrics as ncu names them, and what one of their units is in that of the column.
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "dram": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1e-2),
    "tensor": ("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", 1e-2),
    "issued": ("sm__inst_issued.avg.pct_of_peak_sustained_active", 1e-2),
    "warps": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1e-2),
    "instructions": ("smsp__inst_executed.sum", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
}
#: Warps of a scheduler that wait for it, for each instruction issued.
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    *("long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle", "mio_throttle", "lg_throttle"),
    *("not_selected", "dispatch_stall", "no_instruction", "membar", "sleeping"),
)


def launch(library: Library) -> None:
    """One launch of a kernel for each of CASES, in their order."""
    for case in CASES:
        if isinstance(case, QuantizeCase):
            QuantizeOperands(case).run(library)
            continue
        operands = Operands(case, library, copies=1)
        for name, codes in operands.codes.items():
            if name in ("xq", "xq4"):
                codes.random_(-100, 100)
            else:
                codes.uniform_(0.01, 0.02)
        operands.gemm(library, operands.weights[0])


def counted() -> str:
    """Run `launch` under ncu and return the CSV that it prints.

    Raises:
        SystemExit: ncu failed.
    """
    metrics = ",".join([name for name, _ in METRICS.values()] + [STALL.format(reason) for reason in STALLS])
    options = ["--clock-control=none", f"--kernel-name={KERNELS}", "--csv", "--page=raw", "--print-units=base"]
    command = ["ncu", *options, f"--metrics={metrics}", sys.executable, __file__, "--launch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ncu failed: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def rows_of(text: str) -> Iterator[dict[str, Any]]:
    """One row for each of CASES."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches = list(csv.DictReader(lines))[1:]  # the first holds the units
    for case, seen in zip(CASES, launches, strict=True):
        quantizes = isinstance(case, QuantizeCase)
        stalls = {reason: _number(seen[STALL.format(reason)]) for reason in STALLS}
        yield {
            "suite": "mixq_counters",
            "case": case.producer if quantizes else "gemm",
            "scheme": "mixq-w8a8" if quantizes else f"mixq-{case.scheme}",
            "M": case.m,
            **({} if quantizes else {"N": case.n}),
            "K": case.k,
            "kernel": seen["Kernel Name"].partition("(")[0],
            **{name: round(_number(seen[metric]) * unit, 3) for name, (metric, unit) in METRICS.items()},
            "stalls": {r: round(v, 2) for r, v in sorted(stalls.items(), key=lambda item: -item[1]) if v >= 0.05},
        }


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def show(row: dict[str, Any]) -> str:
    size = " x ".join(str(row[name]) for name in ("M", "N", "K") if name in row)
    stalls = ", ".join(f"{reason} {value}" for reason, value in list(row["stalls"].items())[:4])
    return (
        f"{row['case']:16} {row['scheme']:10} {size:20} {row['us']:7.1f} us  dram {row['dram']:.0%}  tensor "
        f"{row['tensor']:.0%}  issued {row['issued']:.0%}  warps {row['warps']:.0%}  {row['kernel']}  {stalls}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--launch", action="store_true", help="what runs under ncu")
    options = parser.parse_args()
    if options.launch:
        launch(Library(Path(os.environ["GRAPHOPT_PLUGIN_LIBRARY"])))
        return
    rows = list(rows_of(options.read.read_text() if options.read else counted()))
    print("\n".join(map(show, rows)))
    if options.json:
        shared = environment(Library(Path(os.environ["GRAPHOPT_PLUGIN_LIBRARY"])))
        write_rows(options.json, [row | shared for row in rows])


if __name__ == "__main__":
    main()
