"""Decode over a cache, thread by thread on the host: kernels of attention, as they are, against float64."""

import itertools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.passes.mant.cache_codes import SELECTORS
from graphopt.passes.mant.cache_numerics import State, dequantize, update
from graphopt.passes.vq.cache_ops import decode_cache
from tests.support import emulation

HALF, BFLOAT = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
NAMES = {HALF: "f16", BFLOAT: "bf16"}
ROUNDING = {HALF: 2.0**-11, BFLOAT: 2.0**-8}
GROUP = 64  # of M-ANT


@dataclass(frozen=True)
class Case:
    """One call: ``starts`` are tokens of each sequence before it, ``vector`` channels of a code.

    ``tables``: of cos and sin, by which the kernel rotates queries; 0 where append has done so.
    """

    kind: str
    size: int
    group: int
    capacity: int
    starts: tuple[int, ...]
    blocks: int
    vector: int = 0
    kv_heads: int = 1
    seq: int = 1
    dtype: np.dtype = HALF
    tables: int = 0

    @property
    def batch(self) -> int:
        return len(self.starts)

    def __str__(self) -> str:
        sizes = f"{self.kind}{self.vector or ''}-{self.size}-{NAMES[self.dtype]}"
        rotation = f"-rotated{self.tables}" if self.tables else ""
        counts = f"{self.batch}x{self.seq}x{self.kv_heads}x{self.group}"
        return f"{sizes}-{counts}-{max(self.starts)}-{self.blocks}{rotation}"


CASES = (
    Case("cached", 128, 4, 300, (257, 3), 7),
    Case("cached", 64, 1, 500, (499, 400), 5, kv_heads=2, dtype=BFLOAT),
    Case("cached", 128, 5, 200, (150, 63), 3, seq=2),
    Case("cached", 128, 4, 1100, (1023,), 20),  # more parts than a thread asks for at once
    Case("vq", 128, 4, 700, (600, 3), 5, 2, kv_heads=2),
    Case("vq", 128, 2, 1100, (1050, 0), 4, 4),
    Case("vq", 128, 1, 700, (640, 0), 3, 2),
    Case("vq", 128, 1, 1100, (1050,), 5, 4, kv_heads=2),
    Case("vq", 64, 4, 600, (512, 512), 5, 2),
    Case("vq", 64, 1, 1300, (1200,), 2, 2),
    Case("vq", 128, 3, 512, (510, 510), 7, 2, kv_heads=2),
    Case("vq", 128, 4, 300, (-5, 1 << 30), 3, 2),
    Case("vq", 128, 3, 300, (200,), 2, 4, seq=3),
    Case("vq", 128, 4, 600, (580,), 2, 4, dtype=BFLOAT),
    Case("vq", 128, 4, 300, (290, 280, 20, 299), 2, 2, kv_heads=2),  # a block has several segments of a head
    Case("mant", 128, 4, 640, (600, 3), 5),
    Case("mant", 128, 1, 1024, (1000,), 4, kv_heads=2),
    Case("mant", 64, 8, 320, (260, 63), 3, kv_heads=2),
    Case("mant", 128, 4, 640, (639,), 2, dtype=BFLOAT),
    Case("mant", 128, 3, 320, (190,), 2, seq=3),
    Case("mant", 128, 3, 320, (190, 63), 3, seq=3, tables=2),
    Case("mant", 128, 4, 320, (310, 0), 2, kv_heads=2, dtype=BFLOAT, tables=1),
)


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.build(tmp_path_factory.mktemp("decode"), "decode")


def caches(case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Operands that hold the cache after the call, and the keys and values [B, Hkv, C, D] that it stands for."""
    shape = (case.batch, case.kv_heads, case.capacity, case.size)
    length = np.clip(case.starts, 0, case.capacity) + case.seq
    if case.kind == "mant":
        new = rng.standard_normal((2, case.batch, case.capacity, case.kv_heads, case.size)).astype(case.dtype)
        center = rng.standard_normal((case.kv_heads, case.size)).astype(case.dtype)
        empty = State.empty(1, case.kv_heads, case.capacity, case.size, GROUP, case.dtype)
        states = [
            update(empty, *new[:, b : b + 1, :n], np.zeros(1, np.int32), SELECTORS[0], center).arrays()
            for b, n in enumerate(length)
        ]
        state = State(*map(np.concatenate, zip(*states, strict=True)))
        names = ("k", "k_meta", "v", "v_meta", "v_window", "v_scale", "sink", "center")
        return dict(zip(names, (*state.arrays(), center), strict=True)), *dequantize(state, length, center)
    if case.kind == "cached":
        arrays = {name: rng.standard_normal(shape).astype(case.dtype) for name in "kv"}
        for array, (b, n) in itertools.product(arrays.values(), enumerate(length)):
            array[b, :, n:] = np.nan  # nobody may read it
        return arrays, *(np.nan_to_num(a.astype(np.float64)) for a in arrays.values())
    codes = {name: rng.integers(0, 256, (*shape[:3], case.size // case.vector), np.uint8) for name in "kv"}
    books = {
        f"codebook_{name}": rng.standard_normal((case.kv_heads, case.size // case.vector, 256, case.vector)).astype(
            case.dtype
        )
        for name in "kv"
    }
    return codes | books, *(decode_cache(codes[n], books[f"codebook_{n}"]) for n in "kv")


def expected(case: Case, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return attention in float64, and the bound of its error.

    Weights, keys that are made anew and outputs are rounded to T, products of several rows over codes to float16.
    """
    rounding, exact, bound = ROUNDING[case.dtype], [], []
    of_score = {"cached": 0.0, "vq": 2.0**-11 * (case.seq * case.group > 1), "mant": rounding / case.size**0.5}[
        case.kind
    ]
    for b, start in enumerate(np.clip(case.starts, 0, case.capacity)):
        length = min(int(start) + case.seq, case.capacity)
        query = q[b].swapaxes(0, 1).astype(np.float64)
        k, v = (np.repeat(x[b, :, :length].astype(np.float64), case.group, 0) for x in (keys, values))
        scores = query @ k.swapaxes(1, 2) * case.size**-0.5
        seen = np.arange(length) <= int(start) + np.arange(case.seq)[:, None]
        weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        weights /= weights.sum(-1, keepdims=True)
        product = (np.abs(query) @ np.abs(k).swapaxes(1, 2)).max(-1, keepdims=True) * case.size**-0.5
        off = 3 * rounding + 2 * (of_score + 2.0**-19) * product
        exact.append((weights @ v).swapaxes(0, 1))
        bound.append((rounding * np.abs(weights @ v) + off * (weights @ np.abs(v))).swapaxes(0, 1) + 2.0**-22)
    return np.stack(exact), np.stack(bound)


def rotated(x: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    """Rotate x [B, S, H, D] by cos and sin [1 or B, S, D] as the ops do: each operation in float32, rounded to T."""
    cos, sin = (table[:, :, None].astype(np.float32) for table in tables)
    whole = x.astype(np.float32)
    low, high = np.split(whole, 2, -1)
    return (whole * cos + np.concatenate([-high, low], -1) * sin).astype(x.dtype)


def excess(program: Path, case: Case, folder: Path, seed: int = 1) -> float:
    """Run a case; return the largest error as a multiple of its bound."""
    rng = np.random.default_rng(7)
    operands, keys, values = caches(case, rng)
    q = rng.standard_normal((case.batch, case.seq, case.kv_heads * case.group, case.size)).astype(case.dtype)
    q[..., :: case.size // 3] *= 4
    operands |= {"q": q, "start": np.array(case.starts, np.int32)}
    if case.tables:
        angle = rng.uniform(-3, 3, (case.tables, case.seq, case.size))
        operands |= {"cos": np.cos(angle).astype(case.dtype), "sin": np.sin(angle).astype(case.dtype)}
        q = rotated(q, operands["cos"], operands["sin"])
    for name, array in operands.items():
        (folder / name).write_bytes(array.tobytes())
    sizes = (case.batch, case.seq, case.kv_heads, case.group, case.size, case.capacity, case.vector, case.blocks, seed)
    sizes += (case.tables,)
    command = [program, folder, case.kind, NAMES[case.dtype], *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    y = np.frombuffer((folder / "y").read_bytes(), case.dtype).reshape(q.shape).astype(np.float64)
    exact, bound = expected(case, q, keys, values)
    return float(np.nan_to_num(np.abs(y - exact) / bound, nan=np.inf).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode(decode: Path, case: Case, tmp_path: Path) -> None:
    assert excess(decode, case, tmp_path) <= 1


def test_order_of_threads_changes_nothing(decode: Path, tmp_path: Path) -> None:
    outputs = set()
    for seed in range(3):
        excess(decode, CASES[4], tmp_path, seed)
        outputs.add((tmp_path / "y").read_bytes())
    assert len(outputs) == 1


def changed(name: str, old: str, new: str) -> Callable[[str, str], str]:
    def change(header: str, source: str) -> str:
        assert header != name or old in source
        return source.replace(old, new) if header == name else source

    return change


def test_a_barrier_that_is_missing_shows(tmp_path: Path) -> None:
    change = changed("attention/vq/walk.cuh", "kernel.fill_scores();\n    __syncthreads();", "kernel.fill_scores();")
    program = emulation.build(tmp_path, "decode", change)
    assert max(excess(program, CASES[4], tmp_path, seed) for seed in range(3)) > 1


def test_assembly_becomes_calls() -> None:
    known = {"prmt_b32", "cp_async_wait_group"}
    source = """asm("prmt.b32 %0, %1, %2;" : "=r"(bytes) : "r"(f(a, (b))), "r"(c[0]));
asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
asm volatile("bar.sync %0;" ::"r"(1) : "memory"); asm volatile("" : "+r"(value));"""
    assert emulation.translate(source, known).replace("graphopt::emulate::", "").split("\n") == [
        "prmt_b32(bytes, f(a, (b)), c[0]);",
        "cp_async_wait_group(kPending);",
        'missing("bar.sync"); ;',
    ]
