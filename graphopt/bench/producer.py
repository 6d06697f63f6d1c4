"""What fused ops start from: operands of a producer, and its result in float64."""

__all__ = ["EPSILON", "WIDTHS", "ProducerCase", "ProducerOperands"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphopt.bench.capi import torch_with_cuda
from graphopt.numerics.layers import GLUS

EPSILON = 1e-5
#: Producers with the widths that they have in models; those of a GLU are not timed by themselves.
WIDTHS = {
    "RMSNorm": (4096, 8192),
    "AddRMSNorm": (4096, 8192),
    "LayerNorm": (4096,),
    "AddLayerNorm": (4096,),
    "GatedSilu": (14336, 28672),
    "GatedGelu": (14336,),
    "GatedGeluTanh": (14336,),
    "Gelu": (16384,),
    "GeluTanh": (16384,),
}


@dataclass(frozen=True)
class ProducerCase:
    """An op on [M, K] that starts with a producer, or with "Plain", and writes as much."""

    producer: str
    m: int
    k: int

    @property
    def moved(self) -> int:
        """Bytes of float16 that must move: inputs, sum, output; parameters are read from caches."""
        add = "Add" in self.producer
        return 2 * self.m * self.k * (2 + (add or "Gated" in self.producer) + add)


class ProducerOperands:
    """Random operands of one producer.

    Args:
        producer: name without prefix ("AddRMSNorm"), or "Quantize" or "Plain" for none.
        shape: (M, K).
        dtype: name of T.
        shared: whose parameters are taken; else they are random.

    Attributes:
        x: [M, K], or [M, 2K] of a GLU.
        more: other [M, K], gamma and beta [K], as the C API calls them, where the producer has them.
    """

    def __init__(
        self, producer: str, shape: tuple[int, int], dtype: str, shared: "ProducerOperands | None" = None
    ) -> None:
        torch = torch_with_cuda()
        m, k = shape
        self.producer = producer
        glu = "GLU" in producer
        self.x = torch.randn(m, 2 * k if glu else k, dtype=getattr(torch, dtype), device="cuda")
        self.more: dict[str, Any] = {}
        if "Add" in producer or "Gated" in producer:
            self.more["other"] = torch.randn_like(self.x)
        vectors = [*(["gamma"] if "Norm" in producer else []), *(["beta"] if "LayerNorm" in producer else [])]
        for name in vectors:
            self.more[name] = torch.randn(k, dtype=self.x.dtype, device="cuda") if shared is None else shared.more[name]

    @property
    def sum(self) -> Any:
        """T(x + residual) of an add producer."""
        return self.x + self.more["other"]

    def produced(self) -> Any:
        """y [M, K] in float64, before rounding."""
        torch = torch_with_cuda()
        functional, kind = torch.nn.functional, self.producer
        x = self.x.double()
        if kind.endswith("Norm"):
            v = self.sum.double() if kind.startswith("Add") else x
            gamma = self.more["gamma"].double()
            if kind.endswith("RMSNorm"):
                return v * torch.rsqrt((v * v).mean(1, keepdim=True) + EPSILON) * gamma
            return functional.layer_norm(v, v.shape[1:], gamma, self.more["beta"].double(), EPSILON)
        activations: dict[str, Callable[[Any], Any]] = {
            "Quantize": lambda t: t,
            "Plain": lambda t: t,
            "Silu": functional.silu,
            "Gelu": functional.gelu,
            "GeluTanh": lambda t: functional.gelu(t, approximate="tanh"),
        }
        if "GLU" in kind:
            gate, up = x.chunk(2, dim=1)
            return next(activations[name] for name, glu in GLUS.items() if glu == kind)(gate) * up
        y = activations[kind.removeprefix("Gated")](x)
        return y * self.more["other"].double() if "Gated" in kind else y
