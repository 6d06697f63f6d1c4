"""Sizes on which benchmarks/kernels/attention.py checks and times the kernels."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """Sizes as in CachedParams; ``starts`` holds one number for all sequences, or one for each."""

    batch: int
    seq: int
    kv_heads: int
    group: int
    head_size: int
    capacity: int
    starts: tuple[int, ...]
    rotary: bool = True
    tables: int = 1  # of cos and sin: 1 or batch
    in_place: bool = True
    dtype: torch.dtype = torch.float16
    vector: int = 0  # channels of a code; 0: the cache holds elements
    mant: bool = False  # the cache holds 4-bit groups; only timed here, attention_mant.py checks it

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    def fields(self) -> dict:
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch."), "starts": list(self.starts)[:4]}


def cached_checks() -> Iterator[Case]:
    half, bf16, single = torch.float16, torch.bfloat16, torch.float32
    for dtype in (half, bf16):
        for head_size in (64, 80, 96, 128, 256):
            for seq, group in ((1, 1), (1, 4), (2, 8), (5, 3), (9, 4), (70, 2)):
                yield Case(3, seq, 2, group, head_size, 700, (500, 0, 63), dtype=dtype)
        yield Case(2, 5, 2, 4, 128, 300, (298, 295), dtype=dtype)  # rows beyond the capacity are dropped
        yield Case(2, 300, 2, 4, 128, 300, (298, 17), dtype=dtype)
        yield Case(2, 1, 2, 2, 128, 300, (-5, 1 << 30), dtype=dtype)
        yield Case(2, 1000, 2, 2, 128, 1500, (0, 333), rotary=False, dtype=dtype)
        yield Case(1, 129, 1, 6, 64, 4096, (3900,), in_place=False, dtype=dtype)
        yield Case(2, 257, 2, 3, 64, 1024, (767, 1), dtype=dtype)
        yield Case(2, 1, 1, 4, 128, 2200, (2100, 700), dtype=dtype)  # many blocks have parts of a segment
        yield Case(1, 1, 2, 2, 256, 1200, (1150,), dtype=dtype)
        yield Case(2, 1024, 8, 4, 128, 1536, (512, 100), dtype=dtype)  # more work than blocks
        for head_size in (64, 128):
            yield Case(3, 210, 2, 2, head_size, 600, (100, 3, 390), tables=3, dtype=dtype)
        yield Case(2, 3, 2, 2, 24, 90, (50, 7), dtype=dtype)  # no multiple of two vectors
        yield Case(2, 70, 2, 2, 12, 90, (5, 7), dtype=dtype)
        yield Case(2, 3, 2, 2, 40, 90, (50, 7), rotary=False, dtype=dtype)
        yield Case(2, 3, 2, 2, 320, 90, (50, 7), dtype=dtype)
    yield Case(1, 1, 32, 1, 128, 4096, (4095,))
    yield Case(70, 1, 2, 4, 128, 600, tuple(range(0, 560, 8)))
    yield Case(8, 1, 8, 4, 128, 3000, (2999, 10, 1500, 1, 0, 700, 2048, 63))
    yield Case(2, 3, 2, 2, 7, 90, (50, 7), rotary=False, dtype=half)
    for seq in (1, 40):
        yield Case(2, seq, 2, 3, 64, 200, (100, 0), dtype=single, in_place=False)
    yield Case(2, 3, 1, 3, 5, 20, (18, 0), rotary=False, dtype=single)


def vq_checks() -> Iterator[Case]:
    half, bf16 = torch.float16, torch.bfloat16
    for dtype in (half, bf16):
        for head_size, vector in ((128, 2), (128, 4), (64, 2), (64, 4), (96, 2), (256, 8)):
            for seq, group in ((1, 1), (1, 2), (1, 4), (2, 8), (5, 3), (70, 2)):
                yield Case(3, seq, 2, group, head_size, 1500, (1300, 0, 511), dtype=dtype, vector=vector)
        yield Case(2, 5, 2, 4, 128, 300, (298, 295), dtype=dtype, vector=2, in_place=False)
        yield Case(2, 300, 2, 4, 128, 300, (298, 17), dtype=dtype, vector=4)
        yield Case(2, 257, 2, 2, 96, 400, (100, 300), dtype=dtype, vector=4, tables=2)
        for head_size, vector in ((128, 2), (64, 2), (128, 4)):  # many tokens: centroids are ranked first
            yield Case(2, 330, 2, 2, head_size, 700, (100, 17), rotary=False, dtype=dtype, vector=vector)
    yield Case(8, 1, 8, 4, 128, 3000, (2999, 10, 1500, 1, 0, 700, 2048, 63), vector=2)
    yield Case(70, 1, 2, 1, 128, 1200, tuple(range(0, 1120, 16)), vector=4)
    for vector in (2, 4):  # segments that are as long as each other: blocks end where they do
        for dtype in (half, bf16):
            yield Case(8, 1, 8, 4, 128, 2048, (2047,), vector=vector, dtype=dtype)
            yield Case(8, 1, 32, 1, 128, 512, (511,), vector=vector, dtype=dtype)
            yield Case(2, 1, 2, 4, 128, 300, (-5, 1 << 30), vector=vector, dtype=dtype)
            yield Case(2, 1, 2, 1, 128, 1100, (1030, 3), tables=2, in_place=False, vector=vector, dtype=dtype)
        yield Case(2, 1, 2, 3, 128, 700, (640, 3), rotary=False, vector=vector)
        yield Case(70, 1, 4, 4, 128, 600, tuple(range(0, 560, 8)), vector=vector)
        yield Case(70, 1, 4, 1, 128, 600, (599,), vector=vector)
        yield Case(1, 1, 1, 4, 128, 20_000, (19_900,), vector=vector)  # many blocks have parts of a segment
    yield Case(3, 1, 2, 4, 64, 900, (899, 512, 0), vector=2)
    yield Case(2, 70, 1, 2, 128, 300_000, (40, 7), tables=2, vector=2)  # keys and values take turns to be written out
    yield Case(2, 3, 2, 2, 32, 90, (50, 7), vector=16, dtype=torch.float32)


def quick_checks() -> Iterator[Case]:
    """For compute-sanitizer."""
    yield Case(2, 1, 2, 4, 128, 200, (150, 3))
    yield Case(2, 4, 1, 4, 80, 100, (97, 3), dtype=torch.bfloat16)
    yield Case(1, 2, 1, 1, 256, 100, (60,))
    yield Case(1, 70, 1, 2, 64, 150, (60,))
    yield Case(2, 200, 1, 2, 128, 400, (100, 3))
    yield Case(1, 3, 2, 2, 12, 20, (5,), in_place=False)
    yield Case(2, 1, 1, 4, 128, 600, (550, 3), vector=2)
    yield Case(1, 1, 2, 1, 128, 1100, (1050,), vector=4)
    yield Case(1, 40, 1, 2, 64, 90, (30,), vector=2)
    yield Case(2, 140, 1, 2, 128, 300, (100, 180), vector=2)
    yield Case(1, 2, 1, 2, 32, 90, (30,), vector=8)


DECODE = [  # B, Hkv, group, S
    (16, 32, 1, 4096), (8, 8, 4, 8192), (64, 8, 4, 4096), (1, 32, 1, 4096), (1, 8, 4, 8192), (8, 32, 1, 512),
]  # fmt: skip
PREFILL = [
    (1, 32, 1, 512), (1, 32, 1, 2048), (1, 32, 1, 4096), (1, 32, 1, 8192), (1, 8, 4, 4096), (4, 8, 4, 1024),
]  # fmt: skip
HEAD_SIZE = 128
