"""Launch every quantizing op once, for ncu to count; or print what it counted.

bash benchmarks/gpu_trip.sh counters                runs both
python3 benchmarks/counters.py --read FILE          FILE: what `ncu --csv --page raw` printed
"""

import argparse
import csv
import os
import sys
from pathlib import Path

from graphopt.bench.capi import PRODUCERS

M, CAPACITY, EPSILON = 4096, 128, 1e-5
COLS = (8192, 28672)


def launch() -> None:
    """One launch per op and K, in the order of CASES; inputs are new, so that no cache holds them."""
    import torch

    from graphopt.bench.capi import Library

    library = Library(Path(os.environ["GRAPHOPT_PLUGIN_LIBRARY"]))
    for producer, k in CASES:
        x = torch.randn(M, 2 * k if "GLU" in producer else k, dtype=torch.float16, device="cuda")
        other = torch.randn(M, k, dtype=torch.float16, device="cuda")
        gamma, beta = (torch.randn(k, dtype=torch.float16, device="cuda") for _ in range(2))
        idx = torch.randperm(k, device="cuda")[:CAPACITY].sort().values.int()
        outputs = {
            "xq": torch.empty(M, k, dtype=torch.int8, device="cuda"),
            "sx": torch.empty(M, 1, device="cuda"),
            "xo": torch.empty(M, CAPACITY, dtype=torch.float16, device="cuda"),
        }
        if "Add" in producer:
            outputs["sum"] = torch.empty_like(x)
        library.quantize(producer, x, idx, outputs, other=other, gamma=gamma, beta=beta, epsilon=EPSILON)
        torch.cuda.synchronize()


CASES = [(producer, k) for producer in PRODUCERS for k in COLS]


def show(path: Path) -> None:
    """Print a line per launch: its metrics by short names."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))[1:]  # the first holds the units
    for (producer, k), row in zip(CASES, rows, strict=False):
        metrics = {name: value for name, value in row.items() if "__" in name}
        short = "  ".join(f"{name.partition('__')[2][:44]}={value}" for name, value in metrics.items())
        print(f"{producer} K={k}: {short}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, help="a CSV file that ncu wrote")
    options = parser.parse_args()
    if options.read:
        show(options.read)
    else:
        launch()


if __name__ == "__main__":
    sys.exit(main())
