"""Check and time vector-quantized linears of formats that no preset has: generated kernels, and W expanded.

    python3 benchmarks/kernels/vq_generated.py LIBRARY --output DIR [--check-only]

needs PyTorch, the checkout on PYTHONPATH, and NVRTC or the files that it left in $GRAPHOPT_CACHE. Kernels are compared
with the weight that graphopt.passes.vq.numerics decodes, multiplied in float64. Results: DIR/vq_generated_check.json
and DIR/vq_generated.json, written as they come; the time of the kernel that runs without them is peer "generic".
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vq

from graphopt.bench.capi_vq import VqFormat, VqLibrary
from graphopt.bench.ceilings import Ceilings
from graphopt.bench.peers import WEIGHT_ONLY_PEERS, peer_times
from graphopt.bench.record import Row, environment, write
from graphopt.bench.timer import copies_for, median_us

FORMATS = {
    "vq-4-8-2": VqFormat(4, 8, 2),
    "vq-2-6-1": VqFormat(2, 6, 1),
    "vq-8-10-1": VqFormat(8, 10, 1),
    "vq-16-12-2": VqFormat(16, 12, 2),  # codebooks larger than shared memory
    "vq-8-16-1": VqFormat(8, 16, 1),  # much larger
    "vq-4-8-2-t256": VqFormat(4, 8, 2, tile=256),
}
#: Tokens, rows and columns that are no multiples of what blocks take, and X in panels.
CHECKS = (
    (1, 136, 1032), (3, 261, 1544), (16, 520, 2056), (64, 264, 4104), (2, 256, 64), (8, 1000, 28680), (50, 261, 1544),
    (130, 520, 1544), (300, 1032, 2056),
)  # fmt: skip
TIMES = [(m, n, n) for n in (8192, 4096) for m in (1, 4, 16, 32, 64, 128, 512, 2048)]


def multiply(library: VqLibrary, operands: vq.Operands) -> None:
    (m, n, _), t = operands.shape, operands.tensors
    y = t["y"][: m * n].view(m, n)
    library.vq_linear(operands.fmt, t["x"], t["codes"], t["books"], t["scale"], t["bias"], y, t["workspace"])


def same_weight(operands: vq.Operands) -> bool:
    """Whether the check's weight is the numpy evaluator's."""
    (_, n, k), fmt, t = operands.shape, operands.fmt, operands.tensors
    numerics = vq.by_path("numerics")
    positions = -(-k // fmt.vector)
    codes = numerics.unpack_codes(t["codes"].cpu().numpy(), fmt.bits, positions * fmt.residuals)
    codes = codes.reshape(n, positions, fmt.residuals)
    decoded = numerics.decode(codes, t["books"].cpu().numpy(), *fmt.tiles(n, k))[:, :k]
    return bool(np.allclose(decoded, operands.weight().cpu().numpy(), rtol=1e-5, atol=1e-5))


def check(library: VqLibrary) -> Iterator[dict[str, Any]]:
    for scheme, fmt in FORMATS.items():
        for dtype in (torch.float16, torch.bfloat16):
            numbers = library.generate(fmt, dtype, 512, 1024)
            for i, shape in enumerate(CHECKS):
                operands = vq.Operands(fmt, dtype, shape)
                multiply(library, operands)
                excess = operands.excess()
                torch.cuda.synchronize()
                guard = bool((operands.tensors["y"][shape[0] * shape[1] :] == 7.0).all())
                good = excess <= 1 and guard and (i > 0 or same_weight(operands))
                row = {"scheme": scheme, "dtype": str(dtype).removeprefix("torch."), "shape": shape}
                yield row | {"excess": excess, "guard": guard, "failed": not good, "kernels": numbers["images"][0]}


def time(library: VqLibrary) -> Iterator[Row]:
    ceilings = Ceilings.measure()
    for m, n, k in TIMES:
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        peers, missing = peer_times(WEIGHT_ONLY_PEERS, x, n)
        for scheme, fmt in FORMATS.items():
            one = vq.Operands(fmt, torch.float16, (m, n, k), nan=False)
            every = [one, *(one.another() for _ in range(copies_for(one.tensors["codes"].numel()) - 1))]
            calls = [partial(multiply, library, o) for o in every]
            moved = one.tensors["codes"].numel() + 2 * one.tensors["books"].numel() + 6 * n + 2 * m * (k + n)
            yield Row.of(
                median_us(calls),
                ceilings.floor_us(moved, 0, 2 * m * n * k),
                suite="vq_generated",
                case="linear",
                scheme=scheme,
                shape=(m, n, k, 0),
                moved=moved,
                ops=2 * m * n * k,
                peers=peers,
                missing=missing,
            )


def generic_us(library: VqLibrary) -> dict[str, float]:
    """Times of what runs before kernels are generated, for one token."""
    found = {}
    for scheme, fmt in FORMATS.items():
        operands = vq.Operands(fmt, torch.float16, (1, 8192, 8192), nan=False)
        found[scheme] = round(median_us([partial(multiply, library, operands)]).us, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check-only", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    library = VqLibrary(args.library)
    slow = {} if args.check_only else generic_us(library)
    print("generic kernel, microseconds at 1 x 8192 x 8192:", slow, flush=True)
    checks = []
    for result in check(library):
        checks.append(result)
        (args.output / "vq_generated_check.json").write_text(json.dumps(checks, indent=1) + "\n")
    failed = [c for c in checks if c["failed"]]
    print(f"{len(checks)} checks, {len(failed)} failed", *failed, sep="\n", flush=True)
    if args.check_only or failed:
        raise SystemExit(bool(failed))
    rows, shared = [], environment(library)
    for row in time(library):
        if row.M == 1 and row.N == 8192:
            row.peers["generic"] = slow[row.scheme]
        rows.append(row)
        write(args.output / "vq_generated.json", rows, shared)
        speed = row.peers["torch_fp16"] / row.us
        print(f"{row.scheme:14} {row.M:3} x {row.N} x {row.K}: {row.us:7.2f} us, {speed:.2f} x torch", flush=True)


if __name__ == "__main__":
    main()
