"""Hold attention over a M-ANT cache to its numpy evaluator.

    python3 benchmarks/kernels/attention_mant.py --output DIR [--quick]

needs what attention.py needs. The state after the call must be the evaluator's, byte for byte; y may be off by the
rounding of weights and of y, and by float32 sums. Results: DIR/attention_check_mant.json; exit code 1 if any failed.
"""

import argparse
import ctypes
import json
import math
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

for _name in ("passes", "passes.mant"):  # without their __init__, which needs more packages than a GPU host has
    _package = types.ModuleType(f"graphopt.{_name}")
    _package.__path__ = [str(Path(__file__).resolve().parents[2] / _name.replace(".", "/"))]
    sys.modules.setdefault(_package.__name__, _package)

from graphopt.passes.mant.cache_codes import SELECTORS  # noqa: E402
from graphopt.passes.mant.cache_numerics import State, dequantize, update  # noqa: E402

LIBRARY = Path(__file__).resolve().parents[2] / "carry/libattention.so"
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
UNIT_ROUNDOFF = {DTYPES[0]: 2.0**-24, DTYPES[1]: 2.0**-11, DTYPES[2]: 2.0**-8}
GUARD = 4096


@dataclass(frozen=True)
class Case:
    """Sizes; ``starts`` has one number for each sequence."""

    seq: int
    kv_heads: int
    group: int
    head_size: int
    capacity: int
    starts: tuple[int, ...]
    dtype: int = 1
    rotary: bool = True
    in_place: bool = True
    selector: int = 0
    page: int = 64
    nan: str = ""  # tensor of the first sequence's first head that holds a NaN
    offset: int = 0  # elements by which q is off a 16-byte boundary

    @property
    def batch(self) -> int:
        return len(self.starts)


def checks() -> Iterator[Case]:
    """All cases."""
    for dtype in (1, 2):
        for size in (64, 128):
            for seq, group in ((1, 1), (1, 4), (2, 8), (5, 3), (11, 3)):
                yield Case(seq, 2, group, size, 704, (500, 0, 63), dtype)
            yield Case(70, 2, 2, size, 384, (250, 0, 63), dtype)
        yield Case(5, 2, 4, 128, 320, (317, 318, 320, 400), dtype)  # rows beyond the capacity are dropped
        yield Case(1, 2, 2, 128, 320, (-5, 1 << 30), dtype)
        yield Case(1, 2, 1, 128, 1024, (62, 63, 64, 127, 128, 255, 256, 1023), dtype)  # ends of pages and tiles
        yield Case(1, 2, 4, 128, 320, (255, 13), dtype, in_place=False)
        yield Case(1, 1, 4, 128, 8192, (8100,), dtype)  # many blocks have parts of a segment
        yield Case(3, 2, 4, 64, 320, (125, 13), dtype, rotary=False)
        yield Case(2, 2, 2, 96, 320, (125, 13), dtype, page=32)
        yield Case(2, 2, 2, 256, 320, (127, 13), dtype)
        yield Case(2, 2, 2, 128, 320, (127, 13), dtype, offset=1)
        for selector in (1, 2):
            yield Case(66, 1, 2, 128, 192, (50, 0), dtype, selector=selector)
        for name in ("k", "v"):
            yield Case(3, 2, 2, 128, 320, (190, 30), dtype, nan=name)
            yield Case(1, 2, 2, 64, 320, (0, 63), dtype, nan=name)
    yield Case(300, 2, 4, 128, 640, (0, 333))
    yield Case(1, 8, 4, 128, 3072, (2999, 10, 1500, 1, 0, 700, 2048, 63))
    yield Case(2, 2, 2, 64, 320, (190, 63), 0)
    yield Case(40, 2, 2, 32, 320, (190, 63), 0, page=32, in_place=False)


def quick_checks() -> Iterator[Case]:
    """For compute-sanitizer."""
    yield Case(1, 2, 4, 128, 320, (260, 63, 0))
    yield Case(5, 1, 4, 64, 320, (190, 3), 2)
    yield Case(2, 1, 2, 128, 128, (126,), in_place=False)
    yield Case(70, 1, 2, 64, 192, (60,))
    yield Case(2, 1, 2, 96, 128, (31,), page=32)


def random_state(rng: np.random.Generator, case: Case) -> State:
    """Return a cache of random codes with words, window and scales of plausible sizes; unwritten rows are poisoned."""
    kind = DTYPES[case.dtype]
    state = State.empty(case.batch, case.kv_heads, case.capacity, case.head_size, case.page, kind)
    for codes in (state.k, state.v):
        codes[...] = rng.integers(-128, 128, codes.shape)
    pages, group = case.capacity // case.page, case.page
    for meta in (state.k_meta, state.v_meta):
        count = meta.size // 2
        scale = np.exp2(rng.uniform(-3, 2, count)).astype(np.float16).view(np.uint16)
        words = (scale & np.uint16(0xFFF0)) | rng.integers(0, 16, count).astype(np.uint16)
        meta[...] = words.view(np.int8).reshape(meta.shape)
    state.v_window[...] = rng.integers(-127, 128, state.v_window.shape)
    state.v_scale[...] = rng.uniform(0.01, 0.03, state.v_scale.shape)
    state.sink[...] = (rng.standard_normal(state.sink.shape) * 2).astype(kind)
    for b, start in enumerate(np.clip(case.starts, 0, case.capacity)):
        state.k_meta[b, :, start:] = -1
        state.v_meta.reshape(case.batch, case.kv_heads, pages, -1)[b, :, start // group :] = -1
        state.v_window[b, :, start % group :] = 99
        state.v_scale[b, :, start % group :] = np.nan
        if not start:
            state.sink[b] = np.nan
    return state


def inputs(rng: np.random.Generator, case: Case) -> dict[str, np.ndarray]:
    """Return q, k, v, cos, sin, center; q, k and v have outliers."""
    kind = DTYPES[case.dtype]
    shape = (case.batch, case.seq)
    q = rng.standard_normal((*shape, case.kv_heads * case.group, case.head_size))
    k, v = (rng.standard_normal((*shape, case.kv_heads, case.head_size)) for _ in range(2))
    q[..., 3] *= 6
    k[..., 9] *= 8
    v[..., 5] *= 20
    if case.nan:
        {"k": k, "v": v}[case.nan][0, 0, 0, 7] = np.nan
    angle = np.tile(rng.uniform(-3, 3, (1, case.seq, case.head_size // 2)), 2)
    center = rng.standard_normal((case.kv_heads, case.head_size))
    made = {"q": q, "k": k, "v": v, "cos": np.cos(angle), "sin": np.sin(angle), "center": center}
    return {name: value.astype(kind) for name, value in made.items()}


def upload(array: np.ndarray, offset: int = 0) -> torch.Tensor:
    """Return the array's bytes on the device, ``offset`` bytes off a boundary."""
    raw = torch.zeros(array.nbytes + offset, dtype=torch.uint8, device="cuda")
    raw[offset:] = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).ravel().copy()).cuda()
    return raw[offset:]


def download(tensor: torch.Tensor, like: np.ndarray) -> np.ndarray:
    return tensor.cpu().numpy()[: like.nbytes].copy().view(like.dtype).reshape(like.shape)


def pointers(tensors: list[torch.Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(0 if t is None else t.data_ptr() for t in tensors))


class Runner:
    """The C function, with its operands on the device."""

    def __init__(self, case: Case, given: dict[str, np.ndarray], past: State) -> None:
        self._c = ctypes.CDLL(str(LIBRARY))
        self._c.attention_status.restype = ctypes.c_char_p
        self._c.attention_workspace.restype = ctypes.c_int64
        self._case = case
        kind = DTYPES[case.dtype]
        heads = case.kv_heads * case.group
        sizes = (case.dtype, case.batch, case.seq, heads, case.kv_heads, case.head_size, case.capacity, 1,
                 int(case.rotary))  # fmt: skip
        self._sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        device = {name: upload(value, case.offset * kind.itemsize * (name == "q")) for name, value in given.items()}
        self.past = [upload(a) for a in past.arrays()]
        self.present = self.past if case.in_place else [torch.full_like(p, 85) for p in self.past]
        start = upload(np.array(case.starts, np.int32))
        self.y = torch.full((given["q"].nbytes + GUARD,), 0xA5, dtype=torch.uint8, device="cuda")
        workspace = torch.full((self._c.attention_workspace(self._sizes, 1),), 255, dtype=torch.uint8, device="cuda")
        ordered = [device[n] for n in ("q", "k", "v", "cos", "sin")]
        self._kept = [*ordered, None, None, start, self.y, None, None, workspace]
        self._center = device["center"]

    def __call__(self) -> None:
        case = self._case
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = self._c.attention_mant(
            self._sizes, ctypes.c_int64(case.page), case.selector, ctypes.c_float(case.head_size**-0.5),
            pointers(self._kept), ctypes.c_void_p(self._center.data_ptr()), pointers(self.past),
            pointers(self.present), stream,
        )  # fmt: skip
        if status:
            raise RuntimeError(self._c.attention_status(status).decode())


def rotated(x: np.ndarray, given: dict[str, np.ndarray], case: Case) -> np.ndarray:
    if not case.rotary:
        return x
    value, half = x.astype(np.float32), x.shape[-1] // 2
    turned = np.concatenate([-value[..., half:], value[..., :half]], -1)
    cos, sin = (given[n].astype(np.float32)[:, :, None] for n in ("cos", "sin"))
    with np.errstate(invalid="ignore"):
        return (value * cos + turned * sin).astype(x.dtype)


def excess(case: Case, q: np.ndarray, keys: np.ndarray, values: np.ndarray, y: np.ndarray) -> float:
    """Return the largest error of y as a multiple of its bound; what is NaN in one only counts as infinite.

    Bound: weights, y and, in kernels that write keys and values out, those are rounded to T once each.
    """
    starts = np.array(case.starts)
    rounding, worst = UNIT_ROUNDOFF[DTYPES[case.dtype]], 0.0
    for b, start in enumerate(np.maximum(starts, 0)):
        length = min(int(start) + case.seq, case.capacity)
        query = q[b].swapaxes(0, 1).astype(np.float64)
        k, v = (np.repeat(x[b, :, :length].astype(np.float64), case.group, 0) for x in (keys, values))
        with np.errstate(invalid="ignore"):
            scores = query @ k.swapaxes(1, 2) * case.head_size**-0.5
            seen = np.arange(length) <= int(start) + np.arange(case.seq)[:, None]
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            exact, magnitude = weights @ v, weights @ np.abs(v)
            product = (np.abs(query) @ np.abs(k).swapaxes(1, 2)).max(-1, keepdims=True) * case.head_size**-0.5
            score = (rounding / math.sqrt(case.head_size) + 2.0**-20) * product
            bound = rounding * np.abs(exact) + (3 * rounding + 2 * score) * magnitude + 2.0**-22
            error = np.abs(y[b].swapaxes(0, 1).astype(np.float64) - exact) / bound
        got_nan = np.isnan(y[b].swapaxes(0, 1).astype(np.float64))
        error = np.where(np.isnan(exact) & got_nan, 0, np.nan_to_num(error, nan=np.inf))
        worst = max(worst, float(error.max(initial=0)))
    return worst


def check(case: Case) -> list[str]:
    """Run a case twice; return what is wrong."""
    rng = np.random.default_rng(case.seq * 1000 + case.head_size + case.capacity)
    given, past = inputs(rng, case), random_state(rng, case)
    start = np.array(case.starts, np.int32)
    k = rotated(given["k"], given, case)
    with np.errstate(invalid="ignore", over="ignore"):
        want = update(past, k, given["v"], start, SELECTORS[case.selector], given["center"])
        length = np.maximum(start.astype(np.int64), 0) + case.seq
        keys, values = dequantize(want, length, given["center"])
    run = Runner(case, given, past)
    before = [p.clone() for p in run.past]
    run()
    torch.cuda.synchronize()
    first, problems = run.y.cpu().numpy().copy(), []
    if (first[-GUARD:] != 0xA5).any():
        problems.append("wrote past y")
    for name, got, expected in zip(State.__dataclass_fields__, run.present, want.arrays(), strict=True):
        found = download(got, expected)
        same = np.array_equal(found, expected, equal_nan=True) if expected.dtype.kind == "f" else None
        if expected.dtype == DTYPES[2]:
            same = np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)
        if same is None:
            same = bool((found == expected).all())
        if not same:
            problems.append(f"{name}: {int((found != expected).sum())} of {found.size} differ")
    y = first[:-GUARD].view(given["q"].dtype).reshape(given["q"].shape)
    error = excess(case, rotated(given["q"], given, case), keys, values, y)
    if not error <= 1:
        problems.append(f"y is off by {error:.2f} bounds")
    for tensor, saved in zip(run.past, before, strict=True):  # tokens of an older page are gone from the window
        tensor.copy_(saved)
    run()
    torch.cuda.synchronize()
    if not np.array_equal(run.y.cpu().numpy(), first):
        problems.append("the second run gave other bits")
    return [*problems, f"error {error:.2f}"] if problems else []


def check_pieces() -> list[str]:
    """A prompt at once, in pieces and token by token must leave the same bytes."""
    case = Case(200, 2, 2, 128, 256, (0, 0))
    rng = np.random.default_rng(7)
    given, past = inputs(rng, case), random_state(rng, replace(case, starts=(0, 0)))
    states = []
    for sizes in ((200,), (63, 1, 2, 62, 64, 8), (1,) * 200):
        now, state = 0, past
        for size in sizes:
            part = {n: x if n == "center" else x[:, now : now + size] for n, x in given.items()}
            run = Runner(replace(case, seq=size, starts=(now, now)), part, state)
            run()
            torch.cuda.synchronize()
            state = State(*(download(t, a) for t, a in zip(run.present, state.arrays(), strict=True)))
            now += size
        states.append([a.tobytes() for a in state.arrays()])
    return [] if states[0] == states[1] == states[2] else ["the state depends on how a prompt is split"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="few small cases")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows, failed, begin = [], 0, time.perf_counter()
    for case in quick_checks() if arguments.quick else checks():
        problems = check(case)
        failed += bool(problems)
        rows.append({"op": "mant", **asdict(case), "problems": problems})
        if problems:
            print("WRONG", case, problems, flush=True)
    if not arguments.quick:
        problems = check_pieces()
        failed += bool(problems)
        rows.append({"op": "mant", "case": "pieces", "problems": problems})
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    (arguments.output / "attention_check_mant.json").write_text(text)
    print(f"mant: checked {len(rows)}, {failed} wrong, {time.perf_counter() - begin:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
