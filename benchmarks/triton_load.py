"""Load on a Triton server that a repository of `graphopt deploy triton` started: streams, tokens/s, latencies.

    python benchmarks/triton_load.py http://127.0.0.1:8000 NAME --streams 1 2 4 --json benchmarks/results/triton.json

Every client asks again as soon as its text ended, so that as many streams as clients are held all the time.
"""

import argparse
import json
import os
import platform
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.results import provenance, write_rows

PROMPT = "The capital of France is"


class Client(threading.Thread):
    """Asks for texts until ``end``, and notes when their pieces came."""

    def __init__(self, url: str, tokens: int, end: float, seed: int) -> None:
        super().__init__()
        self._url, self._end = url, end
        self._body = {"text_input": PROMPT, "max_tokens": tokens, "stream": True, "ignore_end": True}
        self._body |= {"temperature": 1.0, "seed": seed}
        self.first: list[float] = []
        self.between: list[float] = []
        self.tokens = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while time.perf_counter() < self._end:
                self._ask()
        except Exception as e:
            self.error = e

    def _ask(self) -> None:
        request = urllib.request.Request(self._url, json.dumps(self._body).encode())
        last, seen = time.perf_counter(), 0
        with urllib.request.urlopen(request, timeout=300) as answer:
            for line in answer:
                if not line.startswith(b"data:"):
                    continue
                part, now = json.loads(line[5:]), time.perf_counter()
                if "error" in part:
                    raise RuntimeError(part["error"])
                new = part["completion_tokens"] - seen
                if new:
                    (self.between if seen else self.first).append((now - last) / new)
                    last, seen = now, part["completion_tokens"]
        self.tokens += seen


def measure(url: str, name: str, streams: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Hold ``streams`` texts at a time for about ``seconds``."""
    started = time.perf_counter()
    target = f"{url}/v2/models/{name}/generate_stream"
    clients = [Client(target, tokens, started + seconds, seed) for seed in range(streams)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.perf_counter() - started
    if failed := [c.error for c in clients if c.error]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    first, between = (np.concatenate([getattr(c, k) for c in clients]) for k in ("first", "between"))
    return {
        "streams": streams,
        "texts": len(first),
        "tokens": sum(c.tokens for c in clients),
        "seconds": round(took, 2),
        "tokens_per_second": round(sum(c.tokens for c in clients) / took, 2),
        "first_token_ms": percentiles(first),
        "between_tokens_ms": percentiles(between),
    }


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(1e3 * float(np.percentile(seconds, q)), 2) for q in (50, 90, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--seconds", type=float, default=30, help="for each number of streams")
    parser.add_argument("--device", default=f"CPU, {os.cpu_count()} cores", help="what the server computes on")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.url}/v2/models/{args.model}/config", timeout=60) as answer:
        settings = {k: v["string_value"] for k, v in json.loads(answer.read())["parameters"].items()}
    facts = {"model": args.model, "device": args.device, "machine": platform.machine(), "settings": settings}
    rows = []
    for streams in args.streams:
        load = os.getloadavg()[0]
        row = measure(args.url, args.model, streams, args.tokens, args.seconds)
        rows.append({**facts, "tokens_per_text": args.tokens, "load_before": round(load, 1), **row, **provenance()})
        print(json.dumps(row), flush=True)
        if args.json:
            write_rows(args.json, rows)


if __name__ == "__main__":
    main()
