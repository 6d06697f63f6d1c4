"""The whole pipeline on a real language model, on a machine without a GPU.

Runs the same commands that a user would type, prints each before it runs, and ends with a table of what changed.
Usage: demo.py OUTPUT_FOLDER [--chunks N]
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

console = Console()
seconds: dict[str, float] = {}


def graphopt(stage: str, *arguments: object) -> dict[str, Any]:
    """Run one graphopt command with ``--json``; return its result. Progress and errors go to the terminal."""
    words = [str(a) for a in arguments]
    console.print(f"\n[bold]$ graphopt {shlex.join(words)}[/bold]", soft_wrap=True, highlight=False)
    start = time.perf_counter()
    command = [sys.executable, "-m", "graphopt", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds[stage] = time.perf_counter() - start
    if done.returncode:
        console.print(f"[red]demo stopped: '{stage}' ended with exit code {done.returncode}[/red]")
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Run the commands in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--chunks", type=int, default=16, help="chunks of 512 tokens for the perplexity")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    original, optimized, plan = out / "model.onnx", out / "model.opt.onnx", out / "model.opt.plan"
    results = out / "accuracy.json"

    graphopt("model", "model", "smollm2", "-o", out)
    graphopt("calibrate", "calibrate", original, "-o", out / "stats.npz")
    change = graphopt("optimize", "optimize", original, "--stats", out / "stats.npz", "-o", optimized)
    accuracy = graphopt(
        "accuracy", "eval", "ppl", optimized, "--reference", original, "--chunks", args.chunks,
        "--scheme", "mixq-w8a8", "--results", results,
    )  # fmt: skip
    engine = graphopt("build", "build", optimized, "-o", plan)
    names = ("model.onnx", "model.onnx.data", "config.json", "tokenizer.json", "stats.npz", "model.opt.onnx",
             "model.opt.onnx.data", "accuracy.json", "model.opt.plan", "model.opt.plan.json")  # fmt: skip
    show(change, accuracy, engine, [out / name for name in names])


def show(change: dict[str, Any], accuracy: dict[str, Any], engine: dict[str, Any], files: list[Path]) -> None:
    """Draw the closing table."""
    before, after = change["before"], change["after"]
    table = Table("", "original", "MixQ w8a8", title="SmolLM2-135M-Instruct")
    table.add_row("nodes", f"{before['nodes']:,}", f"{after['nodes']:,}")
    table.add_row("weights", f"{before['weight_bytes'] / 1e6:,.1f} MB", f"{after['weight_bytes'] / 1e6:,.1f} MB")
    table.add_row("plugin nodes in the graph", "0", f"{after['plugin_nodes']:,}")
    table.add_row("plugin layers in the engine", "", f"{engine['plugin_layers']:,}")
    table.add_row("perplexity", f"{accuracy['ppl_fp32']:.3f}", f"{accuracy['ppl']:.3f}")
    table.add_row(
        "KL divergence of logits, top-1 agreement", "", f"{accuracy['kl']:.4f}, {accuracy['top1_agreement']:.1%}"
    )
    console.print(table)
    times = Table("stage", "seconds", title=f"{sum(seconds.values()):.0f} seconds in all")
    for stage, spent in seconds.items():
        times.add_row(stage, f"{spent:.1f}")
    console.print(times)
    for path in files:
        console.print(f"{path}  ({decimal(path.stat().st_size)})", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
