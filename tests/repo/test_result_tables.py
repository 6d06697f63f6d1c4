"""Tables and claims in the READMEs say what the result files say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
PLUGINS, README = ROOT / "trt_plugins/README.md", ROOT / "README.md"
SCHEMES = sorted((ROOT / "passes").glob("*/README.md"))
PAGES = [README, PLUGINS, *SCHEMES, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]

Cells = list[str]


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def tables_of(text: str) -> Iterator[tuple[Cells, list[Cells]]]:
    """Yield the head and the rows of every table."""
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        head, _, *rows = ([c.strip() for c in line.strip("|").split("|")] for line in block.splitlines())
        yield head, rows


def section(page: Path, title: str) -> str:
    text = page.read_text()
    start = text.index(f"\n{title}\n") + 1
    end = re.search(rf"^#{{1,{title.index(' ')}}} ", text[start + len(title) :], re.MULTILINE)
    return text[start : start + len(title) + end.start()] if end else text[start:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rows_have_a_cell_for_every_title(page: Path) -> None:
    for head, rows in tables_of(page.read_text().replace(r"\|", "")):
        for row in rows:
            assert len(row) == len(head), row


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda p: str(p.relative_to(RESULTS)))
def test_what_made_a_file_is_said(file: Path) -> None:
    rows = [line for line in (ROOT / "benchmarks/README.md").read_text().splitlines() if line.startswith("| results/")]
    assert any(file.name in row.split(" | ")[0] for row in rows)


@pytest.mark.parametrize("page", SCHEMES, ids=lambda p: p.parent.name)
def test_accuracy(page: Path) -> None:
    """A row with a perplexity and a divergence is one of the results, with the bits and the agreement that it names."""
    known = {(f"{r['ppl']:.3f}", f"{r['kl']:.4f}"): r for r in results("accuracy/smollm2") if r["kl"] is not None}
    for head, rows in tables_of(page.read_text()):
        if "perplexity" not in head:
            continue
        divergence = next(i for i, title in enumerate(head) if "KL" in title)
        for row in rows:
            found = known.get((row[head.index("perplexity")], row[divergence]))
            assert found is not None, f"{row[0]}: no result has this perplexity and divergence"
            assert row[-1] in ("", f"{found['top1_agreement']:.1%}"), row[0]
            if "bits per weight" in head:
                assert row[head.index("bits per weight")].split(" ")[0] == f"{found['bits_per_weight']:.2f}", row[0]


def rated(page: Path, title: str) -> Iterator[tuple[str, int, str, str]]:
    """Yield (first cell, M, microseconds, times as fast as torch) of the cells 't (r)' of a section's tables."""
    for head, rows in tables_of(section(page, title)):
        for row in rows:
            for column, cell in zip(head, row, strict=True):
                if times := re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell):
                    yield row[0], int(column.removeprefix("M = ")), *times.groups()


@pytest.mark.parametrize(
    ("title", "files"),
    [("## Hopper", ("mixq_linear", "mixq_linear_few")), ("## 4-bit weights on Hopper", ("mixq_w4a8",))],
)
def test_kernels_of_mixq(title: str, files: tuple[str, ...]) -> None:
    """Each cell is a kernel that was timed at that size, beside torch in the same run."""
    measured: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for name in files:
        data = results(f"h100/{name}")
        for row in data["rows"] if isinstance(data, dict) else data:
            kernels = row["us"] if isinstance(row["us"], dict) else row["variants"]
            peer = row["peers"].get("torch_fp16", 0.0)
            pairs = {(f"{us:.1f}", f"{peer / us:.2f}") for us in kernels.values()}
            measured.setdefault((f"{row['N']} x {row['K']}", row["M"]), set()).update(pairs)
    cells = list(rated(PLUGINS, title))
    assert cells
    for size, tokens, us, ratio in cells:
        assert (us, ratio) in measured[size, tokens], f"{size}, M = {tokens}: {us} ({ratio})"


def test_generated_kernels() -> None:
    measured = {
        (row["scheme"], row["M"], f"{row['us']:.1f}", f"{row['peers']['torch_fp16'] / row['us']:.2f}")
        for row in results("h100/vq_generated")
    }
    cells = list(rated(PLUGINS, "### Generated kernels"))
    assert cells
    for label, *cell in cells:
        v, b, r, tile = re.match(r"VQ<(\d+),(\d+),(\d+)>(?:, tiles of (\d+))?", label).groups()  # type: ignore[union-attr]
        assert (f"vq-{v}-{b}-{r}" + (f"-t{tile}" if tile else ""), *cell) in measured, label


def speedups(scheme: str, least: int, most: int) -> str:
    """The range of how many times as fast as torch whole linears of N, K >= 8192 are, at M of least to most."""
    suite = scheme.split("-")[0]
    found = [
        row["peers"]["torch_fp16"] / row["us"]
        for row in results(f"h100/{suite}")
        if (row["case"], row.get("dtype")) == ("linear", "float16")
        and row["scheme"].startswith(scheme)
        and least <= row["M"] <= most
        and min(row["N"], row["K"]) >= 8192
    ]
    return f"{min(found):.1f} to {max(found):.1f}"


def over_cache(scheme: str) -> str:
    """How many times as fast as torch in float16 attention over a cache is, at 16 sequences of 4096 tokens."""
    wanted = {"case": "decode", "scheme": scheme, "B": 16, "Hkv": 32, "S": 4096}
    (row,) = (r for r in results("h100/attention") if wanted.items() <= r.items())
    return f"{row['peers']['torch_fp16'] / row['us']:.1f}"


def test_claims_of_the_first_page() -> None:
    text = README.read_text()
    few, many = (1, 16), (2048, 1 << 20)
    ppl = {(r["scheme"], r["kv"]): r["ppl"] for r in results("accuracy/smollm2")}
    more = ppl["mixq-w8a8", "none"] / ppl["fp", "none"] - 1
    for claim in (
        f"{speedups('mixq-w8a8', *many)} times torch's float16 on an H100 for M >= 2048 and N, K >= 8192",
        f"{speedups('mixq-w8a8', *few)} times for M <= 16",
        f"perplexity + {more:.1%} on SmolLM2".replace("%", " %"),
        f"{speedups('mixq-w4a8', *many)} times torch's float16 at M >= 2048",
        f"{speedups('mixq-w4a8', *few)} times at M <= 16",
        f"{speedups('vq-', 1, 1)} times torch's float16 for one token and N, K >= 8192",
        f"{speedups('vq-', 16, 16)} times for 16",
        f"{speedups('vq-', 512, 1 << 20)} times from 512 on",
        f"{over_cache('kv-cq4')} and {over_cache('kv-cq2')} times torch's float16 at 16 sequences of 4096 tokens",
        f"4-bit cache with attention kernels, {over_cache('kv-mant4')} times torch's float16",
    ):
        assert claim in text
