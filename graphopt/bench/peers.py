"""What else does the work of a quantized linear: torch and bitsandbytes, on operands of the same sizes."""

__all__ = ["GEMM_PEERS", "LINEAR_PEERS", "WEIGHT_ONLY_PEERS", "Peer", "peer_times", "random_codes"]

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.bench.capi import torch_with_cuda
from graphopt.bench.timer import copies_for, median_us

if TYPE_CHECKING:
    from torch import Tensor

#: One call per copy of the weight, from the activations x [M, K] of 16 bits and the size N.
Calls = Sequence[Callable[[], object]]

_INT4_GROUP = 128
_INT4_INNER_TILES = 8
_INT4_MAX_ROWS = 512
_NF4_BLOCK = 64
_INT_MM_MIN_ROWS = 17
_BITSANDBYTES_THRESHOLD = 6.0
_REASON = 160  # characters of a failure that are kept


@dataclass(frozen=True)
class Peer:
    """One alternative.

    Attributes:
        name: key of its times in result files.
        calls: builds its calls.
        weight_bits: of its weights, for the number of copies that caches cannot hold.
        rows: smallest and largest M that it can do, or does in reasonable time.
        graph: whether a CUDA graph can hold it.
        package: what must be installed besides torch.
    """

    name: str
    calls: Callable[["Tensor", int, int], Calls]
    weight_bits: int
    rows: tuple[int, int] = (1, 1 << 30)
    graph: bool = True
    package: str | None = None

    def absence(self, m: int) -> str | None:
        """Return why there is no time at M = ``m``, None if there can be one."""
        low, high = self.rows
        if not low <= m <= high:
            return f"is for {low} <= M <= {high}" if high < 1 << 30 else f"needs M >= {low}"
        if self.package is not None:
            try:
                importlib.import_module(self.package)
            except ImportError as e:
                return f"{self.package} cannot be imported: {e}"
        return None

    def us(self, x: "Tensor", n: int) -> float:
        """Time x [M, K] times a weight of N rows, in microseconds."""
        weight_bytes = n * x.shape[1] * self.weight_bits // 8
        return median_us(self.calls(x, n, copies_for(weight_bytes)), graph=self.graph).us


def _matmul(x: "Tensor", n: int, copies: int) -> Calls:
    torch = torch_with_cuda()
    y = torch.empty(len(x), n, dtype=x.dtype, device="cuda")
    weights = [torch.randn(n, x.shape[1], dtype=x.dtype, device="cuda") for _ in range(copies)]
    return [partial(torch.mm, x, w.t(), out=y) for w in weights]


def _int_mm(x: "Tensor", n: int, copies: int) -> Calls:
    """The integer product alone, without scales."""
    torch = torch_with_cuda()
    codes = random_codes(*x.shape)
    y = torch.empty(len(x), n, dtype=torch.int32, device="cuda")
    weights = [random_codes(n, x.shape[1]) for _ in range(copies)]
    return [partial(torch._int_mm, codes, w.t(), out=y) for w in weights]


def _int4(x: "Tensor", n: int, copies: int) -> Calls:
    """Weight-only, in bfloat16, scales per 128 channels."""
    torch = torch_with_cuda()
    k = x.shape[1]
    activations = x.bfloat16()
    scales = torch.rand(k // _INT4_GROUP, n, 2, device="cuda").bfloat16()

    def weight() -> Any:
        nibbles = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
        return torch._convert_weight_to_int4pack(nibbles, _INT4_INNER_TILES)

    weights = [weight() for _ in range(copies)]
    return [partial(torch._weight_int4pack_mm, activations, w, _INT4_GROUP, scales) for w in weights]


def _bitsandbytes(x: "Tensor", n: int, copies: int) -> Calls:
    """LLM.int8(): finds the outlier columns of every call on the host, so it cannot be captured in a graph."""
    torch = torch_with_cuda()
    nn = importlib.import_module("bitsandbytes.nn")

    def layer() -> Any:
        k = x.shape[1]
        linear = nn.Linear8bitLt(
            k, n, bias=False, has_fp16_weights=False, threshold=_BITSANDBYTES_THRESHOLD, device="cuda"
        )  # to draw a weight that is not used takes seconds on the host
        weight = torch.randn(n, k, dtype=torch.float16, device="cuda").mul_(k**-0.5).cpu()
        linear.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return linear.cuda()  # quantizes on the way

    def call(linear: Any) -> object:
        with torch.no_grad():
            return linear(x)

    return [partial(call, layer()) for _ in range(min(copies, 2))]


def _nf4(x: "Tensor", n: int, copies: int) -> Calls:
    """bitsandbytes' NF4."""
    torch = torch_with_cuda()
    package = importlib.import_module("bitsandbytes")
    calls: list[Callable[[], object]] = []
    for _ in range(copies):
        w = torch.randn(n, x.shape[1], dtype=x.dtype, device="cuda")
        packed, state = package.functional.quantize_4bit(w, blocksize=_NF4_BLOCK, quant_type="nf4")
        calls.append(partial(package.matmul_4bit, x, packed.t(), quant_state=state))
    return calls


def peer_times(peers: Sequence[Peer], x: "Tensor", n: int) -> tuple[dict[str, float], dict[str, str]]:
    """Return the time of each peer by name, and by name why another has none.

    A peer that fails is as good as absent: its failure is the reason, and our own numbers are not lost with it.
    """
    times: dict[str, float] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        reason = peer.absence(len(x))
        if reason is None:
            try:
                times[peer.name] = peer.us(x, n)
            except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as e:
                reason = f"{type(e).__name__}: {e}".splitlines()[0][:_REASON]
        if reason is not None:
            missing[peer.name] = reason
    return times, missing


def random_codes(rows: int, cols: int) -> "Tensor":
    """Return [rows, cols] int8 with a standard deviation of 30, like the codes of a normal row."""
    torch = torch_with_cuda()
    values = torch.randn(rows, cols, dtype=torch.float16, device="cuda")
    return values.mul_(30).clamp_(-127, 127).to(torch.int8)


_FP16 = Peer("torch_fp16", _matmul, 16)
_BF16 = Peer("torch_bf16", _matmul, 16)
_INT4 = Peer("torch_int4", _int4, 4, rows=(1, _INT4_MAX_ROWS))
_INT_MM = Peer("torch_int_mm", _int_mm, 8, rows=(_INT_MM_MIN_ROWS, 1 << 30))
#: Do what the whole linear does: 16-bit activations in, 16-bit activations out. By the type of these.
LINEAR_PEERS = {
    "float16": (_FP16, _INT4, Peer("bitsandbytes_int8", _bitsandbytes, 8, graph=False, package="bitsandbytes")),
    "bfloat16": (_BF16, _INT4),
}
#: Do what a linear of float16 activations and quantized weights does.
WEIGHT_ONLY_PEERS = (_FP16, _INT4, Peer("bitsandbytes_nf4", _nf4, 4, package="bitsandbytes"))
#: Do what the product of codes does.
GEMM_PEERS = {"float16": (_FP16, _INT_MM), "bfloat16": (_BF16, _INT_MM)}
