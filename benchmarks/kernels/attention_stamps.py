"""Print where the time of decode goes: when blocks pass the phases of its kernels, after the end of the call before.

    python3 benchmarks/kernels/attention_stamps.py LIBRARY [--json FILE] [--schemes kv-cq4 ...] [--seconds 20]

needs PyTorch and a library whose units were compiled with -DGRAPHOPT_STAMPS. Calls on copies beyond L2 follow each
other in a CUDA graph, as in attention.py's timings; the very last call is looked at.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from attention import MANT_GROUP, SCHEMES, Library, Operands
from attention_cases import DECODE, HEAD_SIZE, Case

from graphopt.bench.timer import copies_for

#: As in trt_plugins/attention/stamps.cuh.
PHASES = (
    "start", "tiles", "predecessor", "values", "tables", "first tile", "tiles done", "part", "counted", "merged", "end",
)  # fmt: skip
OFFSET, RECORDS, APPEND = 8 << 20, 1024, 512
ROUNDS = 4
FIRST_NS, FIRST_CYCLES, LAST_NS, LAST_CYCLES = range(4)


def aligned(size: int) -> int:
    return (size + 255) // 256 * 256


def roomy(library: Library) -> Library:
    """Let workspaces have room for stamps."""
    c = library.c
    names = ("attention_status", "attention_cached", "attention_vq", "attention_mant")
    library.c = SimpleNamespace(
        **{name: getattr(c, name) for name in names},
        attention_workspace=lambda sizes, codes: c.attention_workspace(sizes, codes) + (16 << 20),
    )
    return library


def stamps_of(case: Case, workspace: torch.Tensor) -> torch.Tensor:
    """Return [records, 16, {first, last} x {ns, cycles}] of the last call with a workspace."""
    counters = aligned(case.batch * case.seq * case.heads * case.head_size * 2)
    partial = counters + aligned(4 * case.kv_heads * case.batch * 4)
    words = workspace[partial + OFFSET :][: RECORDS * 64 * 8]
    return words.view(torch.int64).view(RECORDS, 16, 4)


def run(library: Library, case: Case) -> tuple[list, float]:
    """Return the stamps of every copy's last call, and microseconds of a call."""
    each = sum(p.numel() * p.element_size() for p in Operands(case).past)
    operands = [Operands(case) for _ in range(copies_for(each))]
    calls = [o.call(library, o.past) for o in operands]
    records = [stamps_of(case, call.tensors[11]) for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(ROUNDS):
                for call in calls:
                    call()
        for record in records:
            record.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [r.cpu().numpy() for r in records], begin.elapsed_time(end) * 1e3 / (ROUNDS * len(calls))


def spread(values: list[float]) -> list[float]:
    return [round(f(values), 2) for f in (min, statistics.median, max)]


def timeline(record, zero: int) -> dict:
    """Return when blocks of append and of decode first and last passed each phase.

    Times are microseconds after `zero`, [least, median, most] of the blocks that passed it; "cycles" the median since a
    block's start on its own clock, the first time.
    """
    rows: dict = {}
    for name, blocks in (("append", record[APPEND:]), ("decode", record[:APPEND])):
        blocks = blocks[blocks[:, 0, FIRST_NS] > 0]
        part: dict = {"blocks": len(blocks), "multiprocessors": len(set(blocks[:, 15, 0].tolist()))}
        for i, phase in enumerate(PHASES):
            passed = blocks[blocks[:, i, FIRST_NS] > 0]
            if len(passed):
                part[phase] = {
                    "blocks": len(passed),
                    "first": spread([(t - zero) / 1e3 for t in passed[:, i, FIRST_NS].tolist()]),
                    "last": spread([(t - zero) / 1e3 for t in passed[:, i, LAST_NS].tolist()]),
                }
                since_start = passed[:, i, FIRST_CYCLES] - passed[:, 0, FIRST_CYCLES]
                part[phase]["cycles"] = int(statistics.median(since_start.tolist()))
        rows[name] = part
    return rows


def end_of(record) -> int:
    blocks = record[:APPEND]
    return int(blocks[:, : len(PHASES), LAST_NS].max())


def show(row: dict) -> None:
    case = " ".join(f"{k} {row[k]}" for k in ("scheme", "B", "Hkv", "S"))
    print(f"== {case}: a call {row['us']:.1f} us, from the end before to the end {row['end']:.1f}", flush=True)
    for name in ("append", "decode"):
        part = row["timeline"][name]
        print(f"  {name}: {part['blocks']} blocks on {part['multiprocessors']} multiprocessors")
        for phase in PHASES:
            if phase in part:
                p = part[phase]
                print(f"    {phase:12} {p['blocks']:4} first {p['first']} last {p['last']} cycles {p['cycles']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=["kv-cq4", "kv-mant4", "kv-cq2"])
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    library, rows, begin = roomy(Library(arguments.library)), [], time.perf_counter()
    for scheme in arguments.schemes:
        for batch, kv_heads, group, length in DECODE[:5]:
            if time.perf_counter() - begin > arguments.seconds:
                print("no time for", scheme, batch, kv_heads, length, flush=True)
                continue
            missing = MANT_GROUP // 2 if scheme == "kv-mant4" else 1
            case = replace(Case(batch, 1, kv_heads, group, HEAD_SIZE, length, (length - missing,)), **SCHEMES[scheme])
            records, us = run(library, case)
            record, zero = records[-1], end_of(records[-2])
            row = {"scheme": scheme, "B": batch, "Hkv": kv_heads, "S": length, "us": us}
            row |= {"end": (end_of(record) - zero) / 1e3, "timeline": timeline(record, zero)}
            rows.append(row)
            show(row)
            if arguments.json:
                arguments.json.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
