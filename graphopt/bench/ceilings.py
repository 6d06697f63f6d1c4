"""What the device can do at most, measured in the same run as what is rated by it."""

__all__ = ["Ceilings"]

from dataclasses import dataclass

from graphopt.bench.capi import torch_with_cuda
from graphopt.bench.timer import median_us

_COPY_BYTES = 2 << 30
_PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """Rates of the device.

    Attributes:
        copy: bytes per second, read plus written, of a copy between buffers that no cache holds.
        fp16: operations per second of 16-bit matrix products.
        int8: the same of 8-bit products.
    """

    copy: float
    fp16: float
    int8: float

    def floor_us(self, moved: int, int8_ops: int = 0, fp16_ops: int = 0) -> float:
        """Return the least time of work that moves ``moved`` bytes and does these operations, in microseconds."""
        return max(moved / self.copy, int8_ops / self.int8 + fp16_ops / self.fp16) * 1e6

    def fields(self) -> dict[str, float]:
        """Return the rates as result files hold them."""
        return {
            "copy_tb_s": round(self.copy * 1e-12, 3),
            "fp16_tflop_s": round(self.fp16 * 1e-12),
            "int8_top_s": round(self.int8 * 1e-12),
        }

    @classmethod
    def measure(cls) -> "Ceilings":
        """Measure them on the current device.

        The copy is an elementwise kernel, like what is rated by it: a memory copy inside a CUDA graph moved a fifth
        less on an H100. The products are of zeros, as power is then no limit: that is the rate of the units,
        which random data must not exceed. The rate of 8-bit products is twice the one of 16-bit products, on every GPU
        with tensor cores for both; torch has no kernel that reaches it.
        """
        fp16 = _fp16_product()
        return cls(_copy(), fp16, 2 * fp16)


def _copy() -> float:
    torch = torch_with_cuda()
    source = torch.randn(_COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / (median_us([lambda: torch.neg(source, out=target)]).us * 1e-6)


def _fp16_product() -> float:
    torch = torch_with_cuda()
    a, b, c = (torch.zeros(_PRODUCT_SIZE, _PRODUCT_SIZE, device="cuda", dtype=torch.float16) for _ in range(3))
    return 2 * _PRODUCT_SIZE**3 / (median_us([lambda: torch.mm(a, b.t(), out=c)]).us * 1e-6)
