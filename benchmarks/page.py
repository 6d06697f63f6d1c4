"""Write docs/how_fast_how_accurate.md from the files in benchmarks/results.

python benchmarks/page.py             write it
python benchmarks/page.py --check     exit code 1 if it is not what the results say
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import floors
import tables

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs/how_fast_how_accurate.md"
REFERENCE = "tensorrt_fp16"
#: GPUs in the order of the page.
GPUS = ("h100", "h200")
HEAD = """\
# How fast, how accurate

Made by `python benchmarks/page.py` from the files in [benchmarks/results](../benchmarks/results): do not edit it. What
was measured how, what was predicted and what did not work is in [benchmarks/NOTES.md](../benchmarks/NOTES.md).
"""


FLOORS = """\
Speed as a multiple of torch's in float16 in the same run, unless the line names another peer; of rows in float16.
"""


COUNTERS = """\
What ncu counted (`python benchmarks/counters.py`), one launch each with cold caches, which takes longer than one of
many: shares of the peak of memory and tensor cores, and of the cycles in which a scheduler issues an instruction.
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none of a file that does not exist or holds something else."""
    data = json.loads(path.read_text()) if path.is_file() else []
    return data if isinstance(data, list) else []


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def accuracy(model: str, rows: Sequence[dict]) -> Iterator[str]:
    reference = next((r["ppl_fp32"] for r in rows if r.get("ppl_fp32") is not None), None)
    yield f"### {model}\n"
    yield (
        f"Executed from the optimized file in ONNX Runtime; {rows[0]['chunks']} chunks of text disjoint from that of "
        f"the calibration, {rows[0]['tokens']:,} tokens scored. The unquantized model: {number(reference, '.3f')}.\n"
    )
    head = ("scheme", "KV cache", "bits per weight", "perplexity", "KL divergence, nats", "top-1 agreement")
    yield from tables.table(head, [
        (r["scheme"], r["kv"], number(r["bits_per_weight"], ".2f"), f"{r['ppl']:.3f}", number(r["kl"], ".4f"),
         number(r["top1_agreement"], ".1%")) for r in rows
    ])  # fmt: skip


def engines(rows: Sequence[dict]) -> Iterator[str]:
    yield (
        f"{rows[0]['gpu']}, driver {rows[0]['driver']}; {rows[-1]['date']}. Microseconds of a call of random layers, "
        "CUDA graph; in brackets, how many times as fast as TensorRT's own fp16 engine, whose cache grows and is "
        "copied in every call, where ours is updated in place. Behind a +, the format of the cache; in the last "
        "column, the commit that was measured.\n"
    )
    of_model: dict[str, list[dict]] = {}
    for row in rows:
        of_model.setdefault(row["case"].split(f" {row['phase']} ")[0], []).append(row)
    for label, mine in of_model.items():
        cases = list(dict.fromkeys(r["case"] for r in sorted(mine, key=lambda r: (r["phase"], r["B"]))))
        found = {(r["scheme"], r["case"]): r for r in mine}
        head = ("engine", *(case.removeprefix(f"{label} ") for case in cases), "commit")
        lines = [
            (
                scheme,
                *(engine_cell(found.get((scheme, case))) for case in cases),
                ", ".join(dict.fromkeys(r["commit"] for r in mine if r["scheme"] == scheme)),
            )
            for scheme in dict.fromkeys(r["scheme"] for r in mine)
        ]
        yield from (f"{label}:\n", *tables.table(head, lines), "")


def engine_cell(row: dict | None) -> str:
    if row is None:
        return ""
    speed = tables.speed(row, REFERENCE)
    return f"{row['us']:,.0f}" + (f" ({speed})" if speed else "")


def generation(rows: Sequence[dict]) -> Iterator[str]:
    yield f"{rows[0]['gpu']}; {rows[-1]['date']}. Greedy, one sequence.\n"
    texts = [r for r in rows if r["suite"] == "generate"]
    perplexity = {r["scheme"]: r["ppl"] for r in rows if r["suite"] == "perplexity"}
    lines = []
    for scheme in dict.fromkeys(r["scheme"] for r in texts):
        mine = [r for r in texts if r["scheme"] == scheme]
        parted = [
            f"{r['margin']:.2f}" + (f" ({r['noise']:.2f})" if "noise" in r else "") for r in mine if "margin" in r
        ]
        rate = sorted(r["decode_tokens_s"] for r in mine)[len(mine) // 2]
        same = sum(r["equal_tokens"] == r["tokens"] for r in mine)
        lines.append((
            scheme, mine[0]["runner"], mine[0]["cache"], f"{same} of {len(mine)}", ", ".join(parted), f"{rate:,.0f}",
            number(perplexity.get(scheme), ".3f"), mine[0]["commit"],
        ))  # fmt: skip
    yield (
        "Where a text is another one: by how much the reference's logit of its own token is larger there than that of "
        "the other one (in brackets, the standard deviation of what the scheme's logits differ by from the "
        "reference's).\n"
    )
    head = ("scheme", "runs in", "KV cache", "same text", "where not", "tokens/s", "perplexity", "commit")
    yield from tables.table(head, lines)


def scaling(rows: Sequence[dict]) -> Iterator[str]:
    yield (
        "`graphopt optimize` of random decoders in float16, without calibration: `python benchmarks/scaling.py PRESET`."
        " The machine had other work and a slow disk (its load is in the last column): what the compiler itself takes"
        " is processor time.\n"
    )
    head = (
        "model",
        "scheme",
        "seconds",
        "of the processor",
        "peak memory, MB",
        "model, MB",
        "optimized, MB",
        "cores",
        "load",
    )
    yield from tables.table(head, [
        (r["model"], r["scheme"], f"{r['seconds']:.0f}", f"{r['user_s'] + r['system_s']:.0f}", f"{r['peak_mb']:,}",
         f"{r['model_mb']:,}", f"{r['optimized_mb']:,}", str(r["cores"]), f"{r['load']:.1f}") for r in rows
    ])  # fmt: skip


def sections() -> Iterator[str]:
    yield HEAD
    judged = {p.stem: rows_of(p) for p in sorted((RESULTS / "accuracy").glob("*.json"))}
    yield "## Accuracy\n"
    for model, rows in judged.items():
        if scored := [r for r in rows if "ppl" in r]:
            yield from (*accuracy(model, scored), "")
    for gpu in GPUS:
        if reached := list(floors.floor_table(RESULTS / gpu)):
            yield from (f"## What was to be reached on {gpu.upper()}\n", FLOORS, *reached, "")
        for title, name, section in (("Engines", "engine", engines), ("Text", "generate", generation)):
            if rows := rows_of(RESULTS / gpu / f"{name}.json"):
                yield from (f"## {title} on {gpu.upper()}\n", *section(rows), "")
        for name, section in tables.TABLES.items():
            if rows := rows_of(RESULTS / gpu / f"{name}.json"):
                yield from (
                    f"## Kernels on {gpu.upper()}: {name}\n",
                    tables.caption(rows[0]) + ".\n",
                    *section(rows),
                    "",
                )
        if rows := rows_of(RESULTS / gpu / "mixq_counters.json"):
            yield from (f"## Counters on {gpu.upper()}\n", COUNTERS, *tables.counters_table(rows), "")
    if rows := rows_of(RESULTS / "scaling.json"):
        yield from ("## The compiler\n", *scaling(rows), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = "\n".join(sections())
    if not parser.parse_args().check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the results say; run: python benchmarks/page.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
