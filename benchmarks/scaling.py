"""Time and memory of `graphopt optimize` on a random decoder of a known size.

    python benchmarks/scaling.py PRESET [--scheme mixq-w8a8] [--work FOLDER] [--json FILE]

Makes the float16 model in FOLDER/PRESET unless it is there, optimizes it in a process of its own, and puts one row into
FILE (default benchmarks/results/scaling.json), with the load of the machine, which the seconds depend on. The optimized
files are deleted; the model stays for the next scheme. Without calibration: the outlier sets are empty.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from graphopt.compare.results import record
from graphopt.models.presets import LLAMA_PRESETS
from graphopt.results import provenance

RESULTS = Path(__file__).resolve().parent / "results/scaling.json"
GRAPHOPT = [sys.executable, "-m", "graphopt"]


def measured(command: list[str]) -> dict[str, float]:
    """Run ``command``; return its seconds and its peak memory."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "user_s": round(usage.ru_utime, 1),
        "system_s": round(usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=LLAMA_PRESETS)
    parser.add_argument("--scheme", default="mixq-w8a8")
    parser.add_argument("--work", type=Path, default=Path("out/scaling"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = arguments.work / arguments.preset
    model, optimized = folder / "model.onnx", folder / "model.opt.onnx"
    if not model.is_file():
        command = ["model", "llama", "--preset", arguments.preset, "--dtype", "float16", "-o", str(folder)]
        subprocess.run([*GRAPHOPT, *command], check=True)
    times = measured([*GRAPHOPT, "optimize", str(model), "-o", str(optimized), "--scheme", arguments.scheme, "--json"])
    sizes = {
        key: round(sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) / 1e6)
        for key, path in (("model_mb", model), ("optimized_mb", optimized))
    }
    for file in folder.glob("model.opt.onnx*"):
        file.unlink()
    cores = len(os.sched_getaffinity(0))
    row = {"model": arguments.preset, "scheme": arguments.scheme, **times, **sizes, "cores": cores}
    record(arguments.json, {**row, "load": round(os.getloadavg()[1], 1), **provenance()}, ("model", "scheme"))


if __name__ == "__main__":
    main()
