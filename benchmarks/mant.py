"""Hold the linears of M-ANT to their numpy evaluators on a GPU, through the C API and through the TensorRT plugins.

    python3 benchmarks/mant.py --library LIB --host HOST_V3 --json FILE
    python3 benchmarks/mant.py --write-cases FOLDER      only write the reduced cases for compute-sanitizer

Outputs are poisoned and guarded, every run is made twice and must give the same bits. Exit code 1 if anything failed.
"""

import argparse
import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import v3_cases
from correctness import TYPES, Output, Tally, publish, rng_for, same_bits, sweep, through_plugins, upload
from mant_cases import MantCase
from mixq_cases import row_error

from graphopt.bench.capi_mant import DECODERS, MantLibrary

_HALVES = ("float16", "bfloat16")
_gpu = threading.Lock()


def check(lib: MantLibrary, case: MantCase, offset: int = 0) -> float:
    """Return the worst row error.

    Raises:
        AssertionError: two runs differ or something was written outside y.
    """
    operands = case.inputs(rng_for(case))
    with _gpu:
        device = {name: upload(a, offset if name in ("x", "xq", "scale") else 0) for name, a in operands.items()}
        runs = []
        for _ in range(2):
            y = Output((case.m, case.n), TYPES[case.dtype], offset)
            lib.mant_linear(case.op, device, y.tensor, group=case.group, exact=case.exact or offset > 0)
            torch.cuda.synchronize()
            runs.append(y.read())
    assert same_bits(*runs), "two runs differ"
    return row_error(runs[0], case.expected(operands))


def cases() -> Iterator[MantCase]:
    """Every kernel, ragged edges, groups of all kinds, no token, one, and very many."""
    sizes = [(8, 64), (64, 272), (72, 160), (104, 1040), (136, 464), (33, 100), (1000, 2064), (40, 1)]
    rows = (0, 1, 5, 8, 9, 16, 17, 40, 130, 300)
    groups = itertools.cycle((32, 64, 128, 96, 64, 1 << 13, 64))
    for op, dtype, (n, k), m in itertools.product(DECODERS, TYPES, sizes, rows):
        yield MantCase(op, dtype, m, n, k, next(groups))
    for op, dtype, m, group in itertools.product(DECODERS, TYPES, (1, 12, 50), (32, 64, 128)):
        if op != "MANTLinear":
            yield MantCase(op, dtype, m, 72, 1040, group, by_group=True)
        if op != "MANTLinearW4A8":
            yield MantCase(op, dtype, m, 72, 1040, group, nf4=True)
    for op, dtype, (n, k), m in itertools.product(DECODERS[1:], _HALVES, ((136, 400), (1000, 2064)), (130, 300)):
        yield MantCase(op, dtype, m, n, k, next(groups), exact=True)
    # Some dozens of tokens: whole and ragged tiles, K divided among 1, 2, 4 and 8 blocks, one tile of tokens and more.
    dozens = ((33, 256, 512), (64, 1352, 2064), (70, 136, 4096), (96, 17024, 512), (64, 8200, 1040), (150, 264, 272))
    # The same in tiles of 128 tokens, but for the first.
    more = ((64, 16640, 272), (96, 17032, 336), (70, 4360, 2064), (200, 6920, 272), (128, 2056, 4112))
    for op, (m, n, k) in itertools.product(DECODERS, (*dozens, *more)):
        yield MantCase(op, "float16", m, n, k, next(groups))
        if op == "MANTLinear" or n * k < 1 << 22:
            yield MantCase(op, "bfloat16", m, n, k)
    yield MantCase("MANTLinear", "float16", 70, 1032, 16400)
    # More tokens by weights that are not written out.
    for op in DECODERS:
        yield MantCase(op, "float16", 300, 8200, 2064)
    # Blocks of 64 rows of W, where those fill the device.
    for op, dtype, group in itertools.product(DECODERS, _HALVES, (32, 64)):
        yield MantCase(op, dtype, 12, 8200, 1040, group)
    for op, nf4 in itertools.product(DECODERS, (False, True)):
        if nf4 and op == "MANTLinearW4A8":
            continue
        for group in (64, 128):
            yield MantCase(op, "float16", 1100, 1352, 528, group, nf4=nf4)
    for op in DECODERS:
        yield MantCase(op, "float16", 65536, 40, 64, special=False)
        yield MantCase(op, "float16", 2000, 1400, 272, special=False)
        yield MantCase(op, "float16", 8, 512, 28672, special=False)


def plugin_cases() -> list[MantCase]:
    """A few shapes for every op and type: each kernel once, small enough for compute-sanitizer."""
    sizes = [(0, 8, 64), (1, 40, 64), (12, 72, 160), (20, 33, 100), (33, 64, 272), (140, 136, 400)]
    every = [MantCase(op, t, *size) for op, t, size in itertools.product(DECODERS, TYPES, sizes)]
    every += [MantCase(op, t, 140, 136, 400, exact=True) for op, t in itertools.product(DECODERS[1:], _HALVES)]
    # Two tiles of tokens and three of rows of W, of which the last has no partner.
    every += [MantCase(op, "float16", 300, 328, 1040) for op in DECODERS]
    # K among blocks of a cluster; rows of W and tokens beyond the last tile's.
    every += [MantCase(op, "float16", m, 136, 1040) for op in DECODERS for m in (64, 70)]
    every += [MantCase(op, "float16", 12, 8200, 272) for op in DECODERS]
    wide = ((70, 136, 4112), (70, 8456, 272), (70, 4360, 2064), (70, 2056, 4112), (300, 8200, 528))
    every += [MantCase("MANTLinear", t, *size) for t, size in itertools.product(_HALVES, wide)]
    every += [MantCase("MANTLinearInt8", t, 300, 8200, 2064) for t in _HALVES]
    every += [MantCase(op, t, 20, 72, 160) for op, t in itertools.product(DECODERS, _HALVES)]
    return every + [MantCase(op, "float16", 9, 72, 160, 32) for op in DECODERS]


def through_capi(tally: Tally, lib: MantLibrary) -> None:
    tasks = [(case, str(case), lambda c=case: check(lib, c)) for case in cases()]
    for op, dtype, m in itertools.product(DECODERS, TYPES, (5, 70)):
        case = MantCase(op, dtype, m, 72, 160, exact=True)  # they take the kernel of any alignment
        tasks.append((case, f"{case} misaligned", lambda c=case: check(lib, c, offset=1)))
    sweep(tally, "capi", tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--host", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write-cases", type=Path)
    options = parser.parse_args()
    if options.write_cases:
        options.write_cases.mkdir(parents=True, exist_ok=True)
        v3_cases.write(options.write_cases, plugin_cases(), rng_for)
        return
    lib, tally = MantLibrary(options.library), Tally()
    through_capi(tally, lib)
    if options.host:
        through_plugins(tally, options.library, options.host, plugin_cases())
    sys.exit(bool(publish(lib, tally, options.json)))


if __name__ == "__main__":
    main()
