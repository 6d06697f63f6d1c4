"""Record what engines did on a GPU: results, the page made of them, and the tables that repeat them.

    python benchmarks/engine_record.py FROM [NAME=FILE ...] [--texts FOLDER] [--root FOLDER]

FROM is what engine_hold.py wrote, a folder or a .tgz of one. Rows of a case and scheme that were measured before are
replaced, but TensorRT's own float16 by a faster one only: what its builder chooses differs from build to build, and
the ratios of all rows, older ones too, are to the best that it has reached. Texts are judged (benchmarks/generate.py
judge) by the ONNX files of their schemes, none=FILE among them, with the prompts in FOLDER. Changed are
results/h100/engine.json and generate.json, docs/how_fast_how_accurate.md, the tables in NOTES.md and the one in
README.md. What the numbers mean is for whoever reads them: so the steps, how long each took, and the outputs that were
checked are printed.
"""

import argparse
import json
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import page
import tables
from engine import with_peers
from generate import judge, named

from graphopt.results import write_rows

ROOT = Path(__file__).resolve().parents[1]
SECTION = "### TensorRT 8.6 engines"
#: The table of README.md: the sentence before it, and what comes after it.
OPENING, ENDING = "Engines in TensorRT 8.6 on an H100,", "All numbers: "
INTRODUCTION = f"""{OPENING} as multiples of the speed of TensorRT's own float16 engine: layers of
Llama-2's shapes with random weights, four of 7B or one of 70B. Decode adds a token to each of B sequences of 2048, a
prompt has 2048. TensorRT's engine has its cache grow, as models are exported, and copies it in every call, for 70B with
each key head eight times, where ours is updated in place: much of what is gained at B = 64, and for 70B from B = 4 on.
SmolLM2: the perplexity of its engine."""
#: The engines of that table, and what it calls them.
HEADLINE = {
    "mixq-w8a8": "MixQ w8a8", "mixq-w4a8": "MixQ w4a8", "mixq-w4a8+cq4": "MixQ w4a8, cq4 cache",
    "vq-quip4": "VQ quip4", "vq-quip4+cq4": "VQ quip4, cq4 cache", "mant-w4a8": "M-ANT w4a8",
    "mant-w4a8+kv-mant4": "M-ANT w4a8, 4-bit cache",
}  # fmt: skip
#: Its columns: model, phase and sequences of the rows.
COLUMNS = {
    **{f"7B, B = {b}": ("llama-2-7b 4 layers", "decode", b) for b in (1, 4, 16, 64)},
    "7B, prompt": ("llama-2-7b 4 layers", "prefill", 1),
    **{f"70B, B = {b}": ("llama-2-70b 1 layer", "decode", b) for b in (1, 4, 16, 64)},
    "70B, prompt": ("llama-2-70b 1 layer", "prefill", 1),
}
#: Names of schemes and caches in the accuracy file, where they are others.
JUDGED = {"none": "fp", "kv-mant4": "mant4"}

Row = dict[str, Any]


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Rows of engines, the new ones in place of old ones, in the order of the page; the faster one of two baselines."""
    best = {r["case"]: r["us"] for r in old if r["scheme"] == page.REFERENCE}
    kept = []
    for row in new:
        if row["scheme"] == page.REFERENCE and (before := best.get(row["case"])) is not None:
            print(f"{row['case']}: {page.REFERENCE} took {before:.0f} us, now {row['us']:.0f}")
            if row["us"] > before:
                continue
        kept.append(row)
    rows = with_peers([*old, *kept])
    labels, schemes = (list(dict.fromkeys(r[key] for r in rows)) for key in ("case", "scheme"))
    models = list(dict.fromkeys(model_of(r) for r in rows))
    phases = ["decode", "prefill"]
    rows.sort(key=lambda r: (models.index(model_of(r)), phases.index(r["phase"]), schemes.index(r["scheme"]),
                             r["B"], labels.index(r["case"])))  # fmt: skip
    return rows


def model_of(row: Row) -> str:
    label: str = row["case"].split(f" {row['phase']} ")[0]
    return label


def engine_tables(rows: Sequence[Row]) -> str:
    """The engines' tables of the page, without the sentence before them."""
    _, *lines = page.engines(rows)
    return "\n".join(lines).rstrip("\n") + "\n"


def text_table(rows: Sequence[Row], accuracy: Sequence[Row]) -> str:
    """Texts and perplexities of engines, beside those of function bodies in ONNX Runtime."""
    bodies = {(r["scheme"], r["kv"]): r["ppl"] for r in accuracy}
    lines = []
    for name in dict.fromkeys(r["scheme"] for r in rows):
        texts = [r for r in rows if r["scheme"] == name and r["suite"] == "generate"]
        ppl = next((r["ppl"] for r in rows if r["scheme"] == name and r["suite"] == "perplexity"), None)
        scheme, _, cache = name.partition("+")
        body = bodies.get((JUDGED.get(scheme, scheme), JUDGED.get(cache, cache) or "none"))
        rate = sorted(r["decode_tokens_s"] for r in texts)[len(texts) // 2]
        same = sum(r["equal_tokens"] == r["tokens"] for r in texts)
        parted = ", ".join(str(r["equal_tokens"]) for r in texts if r["equal_tokens"] != r["tokens"])
        lines.append((
            "fp16" if name == "none" else name, page.number(ppl, ".3f"),
            page.number(body, ".3f") + (" (fp32)" if name == "none" else ""), f"{rate:.0f}",
            "" if name == "none" else f"{same} of {len(texts)}" + (f"; parts after {parted} tokens" if parted else ""),
            texts[0]["commit"],
        ))  # fmt: skip
    head = ("engine", "perplexity", "by function bodies", "tokens/s", "same text for 64 tokens", "commit")
    return "\n".join(tables.table(head, lines)) + "\n"


def headline(rows: Sequence[Row], texts: Sequence[Row]) -> str:
    """What README.md says of engines."""
    perplexity = {r["scheme"]: f"{r['ppl']:.3f}" for r in texts if r["suite"] == "perplexity"}
    speeds = {
        (model_of(r), r["phase"], r["B"], r["scheme"]): r["peers"][page.REFERENCE] / r["us"]
        for r in rows
        if r["scheme"] in HEADLINE and page.REFERENCE in r["peers"]
    }
    names = [name for name in HEADLINE if any(name == scheme for *_, scheme in speeds)]
    columns = {title: where for title, where in COLUMNS.items() if any((*where, name) in speeds for name in names)}

    def cell(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"

    lines = [("TensorRT's float16", *("1×" for _ in columns), perplexity["none"])]
    for name in names:
        cells = (cell(speeds.get((*where, name))) for where in columns.values())
        lines.append((HEADLINE[name], *cells, perplexity.get(name, "")))
    return "\n".join((INTRODUCTION, "", *tables.table(("engine", *columns, "SmolLM2"), lines), "", ""))


def with_tables(notes: str, engines: str, texts: str) -> str:
    """NOTES.md with these tables in the section of engines, in place of its own.

    Raises:
        SystemExit: the section is not as it was.
    """
    start = notes.index(f"\n{SECTION}")
    end = notes.index("\n### ", start + 1)
    part = notes[start:end]
    part, first = re.subn(r"(?:^[\w.-]+ \d+ layers?:\n\n(?:\|.*\n)+\n?)+", lambda _: engines + "\n", part, flags=re.M)
    part, second = re.subn(r"^\| engine \| perplexity .*\n(?:\|.*\n)+", lambda _: texts, part, flags=re.M)
    if (first, second) != (1, 1):
        raise SystemExit(f"NOTES.md: the section '{SECTION}' has {first} and {second} of its tables")
    return notes[:start] + part + notes[end:]


def with_headline(readme: str, text: str) -> str:
    """README.md with another table of engines."""
    start = readme.index(OPENING)
    return readme[:start] + text + readme[readme.index(ENDING, start) :]


def report(folder: Path) -> None:
    """Print what became of the steps and of the outputs that were checked."""
    for step in page.rows_of(folder / "steps.json"):
        at = "" if step["at"] is None else f"{step['at']:.0f}"
        print(f"{step['state']:8} at {at:>4} s, {step['seconds']:6.1f} s, processor {step['processor_seconds']:6.1f} s,"
              f" {step['states']} {step['step']} {step['note']}")  # fmt: skip
    for row in page.rows_of(folder / "check.json"):
        print(row)


def record(arguments: argparse.Namespace, folder: Path) -> None:
    root, results = arguments.root, arguments.root / "benchmarks/results/h100"
    report(folder)
    engines = merged(page.rows_of(results / "engine.json"), page.rows_of(folder / "engine.json"))
    texts, new = page.rows_of(results / "generate.json"), page.rows_of(folder / "generate.json")
    texts = [r for r in texts if r["scheme"] not in {n["scheme"] for n in new}] + new
    if new:
        prompts = json.loads((arguments.texts / "prompts.json").read_text())["prompts"]
        unjudged = [r for r in texts if r["scheme"] == "none" or r in new]
        judge(unjudged, named(arguments.files), prompts)
    write_rows(results / "engine.json", engines)
    write_rows(results / "generate.json", texts)
    repeat(root, engines, texts)
    if root == ROOT:
        page.PAGE.write_text("\n".join(page.sections()), encoding="utf-8")


def repeat(root: Path, engines: Sequence[Row], texts: Sequence[Row]) -> None:
    """Write the tables into NOTES.md and README.md."""
    accuracy = json.loads((root / "benchmarks/results/accuracy/smollm2.json").read_text())
    notes, readme = root / "benchmarks/NOTES.md", root / "README.md"
    notes.write_text(with_tables(notes.read_text(), engine_tables(engines), text_table(texts, accuracy)))
    readme.write_text(with_headline(readme.read_text(), headline(engines, texts)))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("files", nargs="*", metavar="NAME=FILE", help="models of the schemes that wrote texts")
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="of benchmarks/generate.py prepare")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository to change")
    arguments = parser.parse_args(words)
    if arguments.source.is_dir():
        record(arguments, arguments.source)
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(arguments.source) as archive:
        archive.extractall(folder, filter="data")
        record(arguments, Path(folder))


if __name__ == "__main__":
    main()
