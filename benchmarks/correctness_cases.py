"""The calls of MixQ that correctness.py checks: every kernel, ragged edges, from no token to very many."""

import itertools
from collections.abc import Iterator

import numpy as np
from mixq_cases import LinearCase, QuantizeCase

from graphopt.bench.capi import PRODUCERS

TYPES = ("float32", "float16", "bfloat16")
ROWS = (0, 1, 3, 16, 17, 128, 300, 1000)
COLS = (64, 576, 1536, 4096, 4100, 11008)
COLUMNS_OUT = (8, 64, 576, 1001, 4096)
CAPACITIES = (16, 64, 128)
MANY_ROWS = 65536
FOUR_BITS = ("MixQLinearW4A8", "MixQLinearW4A4")
GROUPS = (32, 64, 128, 256, 1 << 20)
#: erf of the evaluator is a Python loop.
SLOW_EVALUATORS = ("MixQGelu", "MixQGatedGelu", "MixQGeGLU")
#: Elements of a matrix that is made and evaluated in numpy for one case.
SLOW_ELEMENTS, MOST_ELEMENTS = 200_000, 2_000_000
#: Elements of a weight of which only some numbers of tokens are checked.
LARGE_WEIGHT = 10_000_000
ROWS_OF_LARGE = (1, 16, 300)


def quantize_cases(quick: bool) -> Iterator[QuantizeCase]:
    capacities = itertools.cycle(CAPACITIES)
    rows = (0, 3, 17, 300) if quick else ROWS
    for dtype, producer, k, m in itertools.product(TYPES, PRODUCERS, COLS, rows):
        m = min(m, (SLOW_ELEMENTS if producer in SLOW_EVALUATORS else MOST_ELEMENTS) // k)
        yield QuantizeCase(producer, dtype, m, k, next(capacities), special=True)
    # Rows of every kernel's limits: one warp, one block, long rows, and rows read again.
    for dtype, producer in itertools.product(TYPES, ("MixQQuantize", "MixQAddLayerNorm", "MixQGatedSilu")):
        for k in (1, 7, 8, 512, 1024, 1032, 8192, 16384, 16392, 28672, 32768, 40000):
            yield QuantizeCase(producer, dtype, 9, k, 32, special=k > 16)
            yield QuantizeCase(producer, dtype, 9, k, 32, special=k > 16, bits=4)
    for dtype, producer in itertools.product(TYPES, PRODUCERS):  # few rows of many threads, and many
        for m, k in ((0, 64), (9, 48), (9, 4096), (5, 100), (300, 1024)):
            yield QuantizeCase(producer, dtype, m, k, 32, special=True, bits=4)
    for producer in ("MixQQuantize", "MixQRMSNorm", "MixQAddLayerNorm", "MixQSwiGLU"):
        yield QuantizeCase(producer, "float16", MANY_ROWS, 64, 16, special=True)
        for m, k, capacity in ((9, 64, 64), (9, 100, 112), (300, 2048, 2048)):
            yield QuantizeCase(producer, "float16", m, k, capacity, nothing_left=True)
    # Rows enough for blocks to read one and two of them ahead: each op on one of two lengths.
    lengths = itertools.cycle(((140, 32768), (600, 8192)))
    for producer in PRODUCERS:
        if producer not in SLOW_EVALUATORS:
            for (m, k), dtype in zip(lengths, TYPES, strict=False):
                yield QuantizeCase(producer, dtype, m, k // (2 if dtype == "float32" else 1), 128, special=True)


def linear_cases(quick: bool) -> Iterator[LinearCase]:
    capacities = itertools.cycle(CAPACITIES)
    rows = (0, 3, 17, 300) if quick else ROWS
    for dtype, k, n, m in itertools.product(TYPES, COLS, COLUMNS_OUT, rows):
        if k * n <= LARGE_WEIGHT or m in ROWS_OF_LARGE:
            yield LinearCase(dtype, m, n, k, next(capacities), special=True)
    for dtype in TYPES:  # enough blocks for the large tiles, ragged edges, one K tile, one row
        for m, n, k in ((1024, 2176, 64), (3072, 1408, 80), (2100, 4104, 272), (1, 28672, 48), (9, 32, 16), (40, 1, 1)):
            yield LinearCase(dtype, m, n, k, 48, special=True)
    # Few tokens, each tile, ragged edges; groups of every kind; only the slow kernel takes 32.
    rng = np.random.default_rng(4)
    for k, n, m in itertools.product(COLS, COLUMNS_OUT, (*rows, 12, 30, 40, 100)):
        if k * n > LARGE_WEIGHT and m not in (*ROWS_OF_LARGE, 30, 100):
            continue
        dtype, op, group = str(rng.choice(list(TYPES))), str(rng.choice(FOUR_BITS)), int(rng.choice(GROUPS))
        yield LinearCase(dtype, m, n, k, next(capacities), True, op, group)
    for op, dtype in itertools.product(FOUR_BITS, TYPES):
        for m, n, k in ((3072, 2176, 128), (2100, 4104, 272), (9000, 64, 96), (1, 28672, 48), (9, 32, 16), (40, 1, 1)):
            yield LinearCase(dtype, m, n, k, 48, True, op, 64)
    for op in ("MixQLinear", "MixQLinearAdd", *FOUR_BITS):
        yield LinearCase("float16", MANY_ROWS, 40, 64, 16, True, op, 64)
    # A residual, in every kernel.
    sizes = [
        *((0, 8, 64), (1, 4100, 1536), (12, 4096, 576), (40, 1, 1), (9, 1001, 100), (30, 72, 160), (100, 72, 1024)),
        *((100, 2176, 2048), (128, 4096, 1024), (300, 4104, 272), (1024, 2176, 64), (3072, 1408, 80)),
    ]
    for op, dtype, (m, n, k) in itertools.product(("MixQLinear", *FOUR_BITS), TYPES, sizes):
        yield LinearCase(dtype, m, n, k, 48, True, f"{op}Add", 64)


def misaligned_cases() -> Iterator[QuantizeCase | LinearCase]:
    """For pointers that no 16-byte access may use."""
    for dtype in TYPES:
        for producer, bits in itertools.product(PRODUCERS, (8, 4)):
            yield QuantizeCase(producer, dtype, 9, 576, 32, special=True, bits=bits)
        for m, op in itertools.product((5, 70), ("MixQLinear", "MixQLinearAdd", *FOUR_BITS, "MixQLinearW4A8Add")):
            yield LinearCase(dtype, m, 72, 160, 32, True, op)


def plugin_cases(quick: bool) -> list[QuantizeCase | LinearCase]:
    """A few shapes for every op and type: each kernel once, small enough for compute-sanitizer."""
    shapes = [(0, 64), (9, 64), (5, 100)] if quick else [(0, 64), (9, 64), (33, 1024), (9, 4096), (9, 20480), (5, 100)]
    cases: list[QuantizeCase | LinearCase] = [
        QuantizeCase(producer, dtype, m, k, 32, special=True, bits=bits)
        for dtype, producer, (m, k), bits in itertools.product(TYPES, PRODUCERS, shapes, (8, 4))
    ]
    # One kernel of each kind that reads rows ahead.
    ahead = ("MixQQuantize", "MixQAddLayerNorm", "MixQGatedSilu")
    cases += [QuantizeCase(producer, "float16", 300, 32768, 32) for producer in ahead]
    linear = [(0, 8, 64), (1, 40, 64), (12, 4300, 80), (40, 72, 160), (1024, 2176, 64), (3072, 1408, 64), (20, 33, 100)]
    cases += [LinearCase(dtype, *shape, 32, special=True) for dtype in TYPES for shape in linear]
    sizes = [(0, 8, 64), (1, 40, 64), (12, 43, 80), (30, 72, 160), (20, 33, 100), (40, 33, 160), (40, 72, 160)]
    cases += [LinearCase(t, *size, 48, True, op, 128) for t, op, size in itertools.product(TYPES, FOUR_BITS, sizes)]
    # What an H100 or H200 takes the other wgmma kernels for.
    sizes = [
        *((100, 72, 1024), (40, 16896, 128), (40, 8448, 2048), (100, 72, 128)),
        *((100, 2176, 2048), (256, 4352, 128), (100, 4352, 4096), (300, 8448, 128)),
    ]
    cases += [LinearCase("float16", *size, 48, True, "MixQLinearW4A8", 128) for size in sizes]
    sizes = [(1, 40, 64), (12, 43, 80), (20, 33, 100), (40, 72, 160), (100, 2176, 128), (300, 8448, 128)]
    ops = [f"{op}Add" for op in ("MixQLinear", *FOUR_BITS)]
    cases += [LinearCase(t, *size, 48, True, op, 128) for t, op, size in itertools.product(TYPES, ops, sizes)]
    return cases
