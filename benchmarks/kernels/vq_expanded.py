"""Time linears whose vector-quantized weight is expanded first, by the size of slabs, beside the kernels that decode.

    python3 benchmarks/kernels/vq_expanded.py --output FILE [--seconds 60]

needs PyTorch, the checkout on PYTHONPATH and carry/libvq.so (build_vq.sh). Rows are written as they come, the most
wanted ones first: part "expand" is expanding alone, "linear" the whole, and tiles what runs without.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vq

from graphopt.bench import timer

SQUARE = (8192, 8192)
SLABS = (16, 32, 64, 128)  # MB
#: M, (N, K), sizes of slabs.
PRESETS = (
    (2048, SQUARE, SLABS),
    (512, SQUARE, (32, 64, 128)),
    (4096, SQUARE, (32, 64)),
    (2048, (28672, 8192), (32, 64, 128)),
    (2048, (8192, 28672), (64, 128)),
    (2048, (4096, 4096), (16, 32)),
    (512, (4096, 4096), (16, 32)),
    (128, SQUARE, (64, 128)),
    (64, SQUARE, (64, 128)),
    (4096, (8192, 28672), (64, 128)),
    (4096, (28672, 8192), (32, 64)),
)  # fmt: skip
GENERATED = ("vq-4-8-2", "vq-2-6-1", "vq-8-10-1", "vq-16-12-2", "vq-8-16-1", "vq-4-8-2-t256")
MOST_COPIES = 5  # of the codes: 80 MB of the smallest large ones


def slab_rows(n: int, k: int, megabytes: int) -> int:
    """Rows of W that such a slab has, a multiple of 256."""
    return min((megabytes << 20) // (2 * k) // 256 * 256, n)


def operands_of(scheme: str, m: int, n: int, k: int) -> list[vq.Operands]:
    one = vq.Operands((vq.FORMATS | vq.OTHERS)[scheme], torch.float16, (m, n, k), nan=False)
    copies = min(timer.copies_for(one.tensors["codes"].numel()), MOST_COPIES)
    return [one, *(one.another() for _ in range(copies - 1))]


def torch_us(m: int, n: int, k: int) -> float:
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(2)]
    return timer.median_us([partial(torch.mm, x, w.t()) for w in weights]).us


def expanding(library: vq.Library) -> Iterator[dict[str, Any]]:
    """Expanding alone, of all rows."""
    for scheme in (*vq.FORMATS, *GENERATED):
        every = operands_of(scheme, 16, *SQUARE)
        for megabytes in SLABS if scheme in vq.FORMATS else (64,):
            rows = slab_rows(*SQUARE, megabytes)
            us = timer.median_us([partial(library.expanded, o, rows, alone=True) for o in every]).us
            yield {"part": "expand", "scheme": scheme, "N": 8192, "K": 8192, "slab_mb": megabytes, "us": us}


def linears(
    library: vq.Library, schemes: tuple[str, ...], m: int, shape: tuple[int, int], slabs: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """One size of a linear: every size of slabs, and the kernels that decode as they multiply."""
    (n, k), fp16 = shape, torch_us(m, *shape)
    for scheme in schemes:
        every = operands_of(scheme, m, n, k)
        row = {"scheme": scheme, "M": m, "N": n, "K": k, "torch_fp16": round(fp16, 2)}
        for megabytes in slabs:
            if rows := slab_rows(n, k, megabytes):
                us = timer.median_us([partial(library.expanded, o, rows, alone=False) for o in every]).us
                yield {**row, "part": "linear", "slab_mb": megabytes, "rows": rows, "us": us}
        if scheme in vq.FORMATS:
            kernel = vq.KERNELS.index("tile256" if m > 128 else "tile128" if m > 64 else "tile64")
            for split in (1, 2) if m <= 128 else (1,):
                us = timer.median_us([partial(library.linear, o, kernel, split) for o in every]).us
                yield {**row, "part": vq.KERNELS[kernel], "split": split, "us": us}


def rows(library: vq.Library) -> Iterator[dict[str, Any]]:
    yield from expanding(library)
    for i, (m, shape, slabs) in enumerate(PRESETS):
        yield from linears(library, tuple(vq.FORMATS), m, shape, slabs)
        if i == 1:
            for tokens in (64, 128, 512, 2048):
                yield from linears(library, GENERATED, tokens, SQUARE, (32, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="to stop after")
    options = parser.parse_args()
    timer.SAMPLES, timer.WARM_UP = 11, 3
    start, found = time.monotonic(), []
    for row in rows(vq.Library()):
        row["us"] = round(row["us"], 2)
        found.append(row)
        options.output.write_text(json.dumps(found, indent=0) + "\n")
        speed = f", {row['torch_fp16'] / row['us']:.2f} of torch" if "torch_fp16" in row else ""
        print(f"{time.monotonic() - start:5.1f} s  {row}{speed}", flush=True)
        if time.monotonic() - start > options.seconds:
            break


if __name__ == "__main__":
    main()
