"""Check and time the attention kernels over a cache.

    python3 benchmarks/kernels/attention.py --output DIR [--check-only] [--quick] [--groups cached vq]

needs PyTorch, the checkout on PYTHONPATH and carry/libattention.so (build_attention.sh). Every kernel is compared with
attention in float64, then timed beside the fastest of torch's scaled_dot_product_attention. Results:
DIR/attention_check_GROUP.json and DIR/attention_time_GROUP.json, written as they come. Each group (caches of elements,
caches of codes) runs in a process of its own, so that a fault in one does not lose the others.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from attention_cases import DECODE, HEAD_SIZE, PREFILL, TYPES, Case, cached_checks, quick_checks, vq_checks
from torch.nn.attention import SDPBackend, sdpa_kernel

from graphopt.bench.timer import Timing, copies_for, median_us

LIBRARY = Path(__file__).resolve().parents[2] / "carry/libattention.so"
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Of the terms' magnitude, per float32 operation: rounding costs 2^-24, truncation in a tensor core up to 4 times that.
FLOAT32_ERROR = 2.0**-22
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
GUARD = 4096  # elements after y that must not change


class Library:
    """The C functions of attention.cu."""

    def __init__(self, path: Path):
        self.c = ctypes.CDLL(str(path))
        self.c.attention_status.restype = ctypes.c_char_p
        self.c.attention_workspace.restype = ctypes.c_int64

    def require(self, status: int, what: object) -> None:
        if status:
            raise RuntimeError(f"{what}: {self.c.attention_status(status).decode()}")


def sizes_of(case: Case) -> ctypes.Array:
    values = (
        TYPES.index(case.dtype), case.batch, case.seq, case.heads, case.kv_heads, case.head_size, case.capacity,
        case.tables, int(case.rotary),
    )  # fmt: skip
    return (ctypes.c_int64 * len(values))(*values)


def addresses(tensors: Sequence[torch.Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


#: Tokens of a page of the M-ANT cache.
MANT_GROUP = 64


def mant_state(c: Case) -> list[torch.Tensor]:
    """Random codes under random types, scales near 1/8."""
    lead, g = (c.batch, c.kv_heads), MANT_GROUP

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, (*lead, *shape), dtype=torch.int8, device="cuda")

    def words() -> torch.Tensor:
        half = torch.rand(*lead, c.capacity, c.head_size // g, device="cuda").mul_(0.1).add_(0.1).half()
        return half.view(torch.int16) & ~15 | torch.randint(0, 16, half.shape, dtype=torch.int16, device="cuda")

    scale = torch.rand(*lead, g, device="cuda").mul_(0.01).add_(0.01).half()
    sink = torch.randn(*lead, 2, c.head_size, device="cuda").to(c.dtype)
    half = c.head_size // 2
    rows = [codes(c.capacity, half), words(), codes(c.capacity, half), words()]
    return [*rows, codes(g, c.head_size), scale, sink]


@dataclass
class Operands:
    """Device tensors of one case; q has outlier channels."""

    case: Case
    q: torch.Tensor = field(init=False)
    k: torch.Tensor = field(init=False)
    v: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        c = self.case
        torch.manual_seed(c.seq * 1000 + c.head_size)
        normal = lambda *shape: torch.randn(*shape, device="cuda", dtype=c.dtype)  # noqa: E731
        self.q = normal(c.batch, c.seq, c.heads, c.head_size)
        self.q[..., :: max(1, c.head_size // 3)] *= 4
        self.k, self.v = (normal(c.batch, c.seq, c.kv_heads, c.head_size) for _ in range(2))
        angle = torch.rand(c.tables, c.seq, c.head_size, device="cuda") * 6 - 3
        self.cos, self.sin = angle.cos().to(c.dtype), angle.sin().to(c.dtype)
        shape = (c.batch, c.kv_heads, c.capacity, c.head_size // max(1, c.vector))
        if c.mant:
            self.past = mant_state(c)
            self.center = torch.zeros(c.kv_heads, c.head_size, device="cuda", dtype=c.dtype)
        elif c.vector:
            self.past = [torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda") for _ in range(2)]
            self.books = [normal(c.kv_heads, c.head_size // c.vector, 256, c.vector) for _ in range(2)]
        else:
            self.past = [normal(*shape) for _ in range(2)]
        starts = c.starts if len(c.starts) == c.batch else c.starts * c.batch
        self.start = torch.tensor(starts, dtype=torch.int32, device="cuda")
        self.y = torch.full((c.batch * c.seq * c.heads * c.head_size + GUARD,), 7.0, device="cuda", dtype=c.dtype)

    def poison(self) -> None:
        """Make rows that nothing was written to NaN; no code is one."""
        if self.case.vector:
            return
        for b, start in enumerate(self.start.tolist()):
            for cache in self.past:
                cache[b, :, min(max(start, 0), self.case.capacity) :] = math.nan

    def call(self, library: Library, present: list[torch.Tensor]) -> Callable[[], None]:
        """Return a call that enqueues the op; it owns a workspace full of NaN bits."""
        sizes, case = sizes_of(self.case), self.case
        codes = case.vector > 0 or case.mant
        size = library.c.attention_workspace(sizes, int(codes))
        workspace = torch.full((size,), 255, dtype=torch.uint8, device="cuda")
        new = (self.q, self.k, self.v, self.cos, self.sin)
        tensors = (*new, *self.past[:2], self.start, self.y, *present[:2], workspace)
        pointers = addresses(tensors)
        scale = ctypes.c_float(case.scale)
        function, extra, books = library.c.attention_cached, (), ()
        if case.mant:
            function, extra = library.c.attention_mant, (ctypes.c_int64(MANT_GROUP), ctypes.c_int(0))
            books = (ctypes.c_void_p(self.center.data_ptr()), addresses(self.past), addresses(present))
        if case.vector:
            function, extra = library.c.attention_vq, (ctypes.c_int64(case.vector),)
            books = ((ctypes.c_void_p * 2)(*(t.data_ptr() for t in self.books)),)

        def enqueue() -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            library.require(function(sizes, *extra, scale, pointers, *books, stream), case)

        enqueue.tensors = (*tensors, *self.past, *present)  # the pointers are theirs
        return enqueue


def rotated(x: torch.Tensor, o: Operands) -> torch.Tensor:
    """Rotary of x [B, S, H, D] in float32, rounded to T."""
    if not o.case.rotary:
        return x
    value, half = x.float(), x.shape[-1] // 2
    turned = torch.cat((-value[..., half:], value[..., :half]), -1)
    return (value * o.cos.float()[:, :, None] + turned * o.sin.float()[:, :, None]).to(x.dtype)


def nearest(x: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Codes [S, H, G] of x [S, H, D]; every operation is rounded to float32, ties go to the lowest code."""
    vectors = x.float().view(*x.shape[:2], book.shape[1], 1, book.shape[3])
    distance = torch.zeros((), device="cuda")
    for e in range(book.shape[3]):
        off = vectors[..., e] - book.float()[None, :, :, :, e]
        distance = distance + off * off
    return distance.argmin(-1).to(torch.uint8)


def decoded(codes: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Values [B, Hkv, C, D] of codes [B, Hkv, C, G]."""
    heads = torch.arange(book.shape[0], device="cuda")[None, :, None, None]
    groups = torch.arange(book.shape[1], device="cuda")
    return book[heads, groups, codes.long()].flatten(3)


def expected_present(o: Operands) -> list[torch.Tensor]:
    present = [p.clone() for p in o.past]
    for b, start in enumerate(o.start.tolist()):
        first = min(max(start, 0), o.case.capacity)
        count = min(o.case.seq, o.case.capacity - first)
        for i, new in enumerate((rotated(o.k, o), o.v)):
            rows = new[b, :count]
            if o.case.vector:
                rows = nearest(rows, o.books[i])
            present[i][b, :, first : first + count] = rows.transpose(0, 1)
    return present


def excess(o: Operands, present: list[torch.Tensor], y: torch.Tensor) -> float:
    """Largest error of y as a multiple of its bound; NaN counts as infinite.

    Bound: weights and y are rounded to T once each, scores may be off by float32 errors and by one rounding of q' or k'
    that went the other way.
    """
    c, worst, rounding = o.case, 0.0, UNIT_ROUNDOFF[o.case.dtype]
    # Over codes, scores of several rows are sums of products that are rounded to float16.
    score_rounding = UNIT_ROUNDOFF[torch.float16] if c.vector > 0 and c.seq * c.group > 1 else 0.0
    query = rotated(o.q, o)
    for b, start in enumerate(o.start.tolist()):
        first = min(max(start, 0), c.capacity)
        length = min(first + c.seq, c.capacity)
        q = query[b].transpose(0, 1).double()
        k, v = (p[b, :, :length].double().repeat_interleave(c.group, 0) for p in present)
        scores = q @ k.transpose(1, 2) * c.scale
        seen = torch.arange(length, device="cuda") <= first + torch.arange(c.seq, device="cuda")[:, None]
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        exact, magnitude = weights @ v, weights @ v.abs()
        flip = 2 * UNIT_ROUNDOFF[c.dtype] * c.scale * q.abs().amax(-1, keepdim=True) * k.abs().amax()
        product = c.scale * (q.abs() @ k.abs().transpose(1, 2)).amax(-1, keepdim=True)
        off = (FLOAT32_ERROR * c.head_size / 8 + score_rounding) * product + flip * c.rotary
        bound = rounding * exact.abs() + (rounding + off) * magnitude + 2.0**-24
        error = (y[b].transpose(0, 1).double() - exact).abs() / bound
        worst = max(worst, error.nan_to_num(nan=math.inf).max().item())
    return worst


def check(library: Library, case: Case) -> dict:
    """Run one case twice and compare everything it writes."""
    o = Operands(case)
    o.poison()
    reference = expected_present(o)
    present = o.past if case.in_place else [torch.full_like(p, 3.0) for p in o.past]
    call = o.call(library, present)
    call()
    torch.cuda.synchronize()
    first = o.y.clone()
    problems = []
    if not (first[-GUARD:] == 7).all():
        problems.append("wrote past y")
    for name, got, want in zip("kv", present, reference, strict=True):
        if case.vector:  # a rounding of k' that went the other way may change a code
            wrong = int((got != want).sum()) > 1e-3 * case.batch * case.seq * want[0, :, 0].numel()
        else:
            off = (got.float() - want.float()).abs() > 2 * UNIT_ROUNDOFF[case.dtype] * want.float().abs() + 1e-7
            wrong = bool(off.any()) or not torch.equal(got.isnan(), want.isnan())
        if wrong:
            problems.append(f"present_{name} is wrong")
    shape = (case.batch, case.seq, case.heads, case.head_size)
    if case.vector:
        values = [decoded(p, book) for p, book in zip(present, o.books, strict=True)]
    else:
        values = [p.nan_to_num(nan=0.0) for p in present]
    error = excess(o, values, first[:-GUARD].view(shape))
    if not error <= 1:
        problems.append(f"y is off by {error:.1f} bounds")
    call()
    torch.cuda.synchronize()
    if not torch.equal(o.y.view(torch.uint8), first.view(torch.uint8)):
        problems.append("the second run gave other bits")
    return {"op": "vq" if case.vector else "cached", **case.fields(), "error": error, "problems": problems}


def torch_us(q: torch.Tensor, caches: list, *, causal: bool) -> tuple[float, str]:
    """Fastest of torch's backends, q [B, H, S, D], in microseconds, and its name."""
    best = (math.inf, "none")
    for backend in BACKENDS:

        def call(k: torch.Tensor, v: torch.Tensor) -> None:
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
            )

        with suppress(RuntimeError), sdpa_kernel(backend):
            us = median_us([lambda k=k, v=v: call(k, v) for k, v in caches]).us
            best = min(best, (us, backend.name.lower()))
    return best


#: What the cache holds, by scheme.
SCHEMES = {"fp16": {}, "kv-cq4": {"vector": 2}, "kv-cq2": {"vector": 4}, "kv-mant4": {"mant": True}}
NOTHING = {"vector": 0, "mant": False}
#: Schemes that one process times.
TIMED = {"cached": ["fp16"], "vq": ["kv-cq4", "kv-cq2"], "mant": ["kv-mant4"]}


def copies_of(library: Library, case: Case) -> tuple[list[Operands], list[Callable[[], None]]]:
    """Return as many sets of operands as L2 cannot hold, and their calls."""
    each = sum(p.numel() * p.element_size() for p in Operands(case).past)
    operands = [Operands(case) for _ in range(copies_for(each))]
    return operands, [o.call(library, o.past) for o in operands]


def scheme_of(case: Case) -> str:
    return next(n for n, held in SCHEMES.items() if {"vector": case.vector, "mant": case.mant} == NOTHING | held)


def row_of(case: Case, name: str, timing: Timing, **more: object) -> dict:
    return {
        "suite": "attention", "case": name, "scheme": scheme_of(case), "B": case.batch, "H": case.heads,
        "Hkv": case.kv_heads, "D": case.head_size, "S": case.capacity, "us": round(timing.us, 2),
        "spread": round(timing.spread, 3), **more,
    }  # fmt: skip


def peer_fields(us: float, name: str, ours: float) -> dict:
    return {"peers": {"torch_fp16": round(us, 2)}, "torch_backend": name, "speedup": round(us / ours, 3)}


def torch_decode(case: Case) -> tuple[float, str]:
    """Time torch over a float16 cache; the heads of a group are like new tokens, so that keys need not be repeated."""
    plain = replace(case, vector=0, mant=False)
    each = 2 * case.batch * case.kv_heads * case.capacity * case.head_size * 2  # bytes of K and V
    operands = [Operands(plain) for _ in range(copies_for(each))]
    packed = operands[0].q.view(case.batch, case.kv_heads, case.group, case.head_size)
    return torch_us(packed, [tuple(o.past) for o in operands], causal=False)


def torch_prefill(case: Case) -> tuple[float, str]:
    o = Operands(replace(case, vector=0, mant=False))
    return torch_us(o.q.transpose(1, 2).contiguous(), [tuple(o.past)], causal=True)


def time_decode(library: Library, case: Case, peer: tuple[float, str]) -> dict:
    operands, calls = copies_of(library, case)
    ours = median_us(calls)
    moved = sum(p.numel() * p.element_size() for p in operands[0].past)
    rate = round(moved / ours.us * 1e-6, 3)
    return row_of(case, "decode", ours, bytes=moved, tb_s=rate, **peer_fields(*peer, ours.us))


def time_prefill(library: Library, case: Case, peer: tuple[float, str]) -> dict:
    o = Operands(case)
    ours = median_us([o.call(library, o.past)])
    ops = 2 * case.batch * case.heads * case.seq * (case.seq + 1) * case.head_size
    rate = round(ops / ours.us * 1e-6, 1)
    return row_of(case, "prefill", ours, ops=ops, tflop_s=rate, **peer_fields(*peer, ours.us))


def timings(library: Library, schemes: Sequence[str]) -> Iterator[dict]:
    """Time the schemes, and torch over float16 beside them."""
    for sizes, torch_time, measure in ((DECODE, torch_decode, time_decode), (PREFILL, torch_prefill, time_prefill)):
        for batch, kv_heads, heads, length in sizes:
            decodes = measure is time_decode
            case = Case(batch, 1 if decodes else length, kv_heads, heads, HEAD_SIZE, length, (0,))
            peer = torch_time(replace(case, starts=(length - 1 if decodes else 0,)))
            torch.cuda.empty_cache()
            for scheme in schemes:
                # A page of the M-ANT cache is half full, as it is on average.
                missing = MANT_GROUP // 2 if scheme == "kv-mant4" else 1
                starts = (length - missing if decodes else 0,)
                yield measure(library, replace(case, starts=starts, **SCHEMES[scheme]), peer)
                torch.cuda.empty_cache()


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


CHECKS = {"cached": cached_checks, "vq": vq_checks, "mant": tuple}


def run_group(group: str, arguments: argparse.Namespace) -> int:
    """Check, then time one group in this process; returns how many checks failed."""
    library, rows, failed, begin = Library(LIBRARY), [], 0, time.perf_counter()
    cases = [*CHECKS[group]()]
    if arguments.quick:
        cases = [c for c in quick_checks() if group == ("vq" if c.vector else "cached")]
    for case in cases:
        row = check(library, case)
        rows.append(row)
        write(arguments.output / f"attention_check_{group}.json", rows)
        if row["problems"]:
            failed += 1
            print("WRONG", row, flush=True)
    print(f"{group}: checked {len(rows)}, {failed} wrong, {time.perf_counter() - begin:.0f} s", flush=True)
    if arguments.check_only:
        return failed
    rows = []
    for row in timings(library, TIMED[group]):
        rows.append(row)
        write(arguments.output / f"attention_time_{group}.json", rows)
        sizes = " ".join(f"{key}{row[key]}" for key in ("B", "H", "Hkv", "S"))
        rate = f"{row['tb_s']} TB/s" if "tb_s" in row else f"{row['tflop_s']} TFLOP/s"
        name = f"{row['scheme']:7} {row['case']:7} {sizes:24}"
        print(f"{name} {row['us']:8} us  {rate:15} {row['speedup']} x torch", flush=True)
    print(f"{group}: {time.perf_counter() - begin:.0f} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few small cases")
    parser.add_argument("--groups", nargs="+", choices=CHECKS, default=list(CHECKS))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if len(arguments.groups) == 1:
        sys.exit(1 if run_group(arguments.groups[0], arguments) else 0)
    same = [flag for flag in ("--check-only", "--quick") if getattr(arguments, flag[2:].replace("-", "_"))]
    codes = {}
    for group in arguments.groups:
        command = [sys.executable, __file__, "--output", str(arguments.output), "--groups", group, *same]
        codes[group] = subprocess.run(command, check=False).returncode
    print(*(f"{group}: {'passed' if code == 0 else f'FAILED ({code})'}" for group, code in codes.items()), sep=", ")
    sys.exit(1 if any(codes.values()) else 0)


if __name__ == "__main__":
    main()
