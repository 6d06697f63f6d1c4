"""The C API of the plugin library over torch tensors. Needs torch and numpy only: it runs on a bare GPU host."""

import ctypes
import importlib.util
import sys
import types
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

#: Quantizing ops by plugin name, in the order of their numbers in the C API.
PRODUCERS = (
    "MixQQuantize",
    "MixQRMSNorm",
    "MixQAddRMSNorm",
    "MixQLayerNorm",
    "MixQAddLayerNorm",
    "MixQGatedSilu",
    "MixQGatedGelu",
    "MixQGatedGeluTanh",
    "MixQGelu",
    "MixQGeluTanh",
)


def mixq_numerics() -> types.ModuleType:
    """The numpy evaluators, imported by path: graphopt.passes exists only where graphopt is installed."""
    sys.path.insert(0, str(REPOSITORY))
    spec = importlib.util.spec_from_file_location("mixq_numerics", REPOSITORY / "passes/mixq/numerics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Library:
    """libgraphopt_plugins.so.

    Args:
        path: the library file.
    """

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        for name in ("graphopt_status_string", "graphopt_plugins_version", "graphopt_plugins_build_info"):
            getattr(self._lib, name).restype = ctypes.c_char_p
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self._lib.graphopt_mixq_quantize.argtypes = (
            [number, number, long, long, long] + [pointer] * 5 + [ctypes.c_float] + [pointer] * 6
        )
        self._lib.graphopt_mixq_linear.argtypes = [number] + [long] * 4 + [pointer] * 9

    @property
    def build_info(self) -> str:
        return self._lib.graphopt_plugins_build_info().decode()

    @property
    def version(self) -> str:
        return self._lib.graphopt_plugins_version().decode()

    def _require(self, status: int) -> None:
        if status:
            raise RuntimeError(self._lib.graphopt_status_string(status).decode())

    def quantize(
        self,
        producer: str,
        x: torch.Tensor,
        idx: torch.Tensor,
        outputs: dict[str, torch.Tensor],
        *,
        other: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
        beta: torch.Tensor | None = None,
        epsilon: float = 0.0,
    ) -> None:
        """Enqueue a quantizing op on the current stream. ``outputs``: xq, sx, xo and, where wanted, sum and y."""
        rows, cols = x.shape
        self._require(
            self._lib.graphopt_mixq_quantize(
                PRODUCERS.index(producer),
                _CODES[x.dtype],
                rows,
                cols,
                len(idx),
                *map(_pointer, (x, other, gamma, beta, idx)),
                epsilon,
                *map(_pointer, (outputs.get(name) for name in ("xq", "sx", "xo", "sum", "y"))),
                torch.cuda.current_stream().cuda_stream,
            )
        )

    def linear(
        self,
        xq: torch.Tensor,
        sx: torch.Tensor,
        xo: torch.Tensor,
        wq: torch.Tensor,
        sw: torch.Tensor,
        wo: torch.Tensor,
        bias: torch.Tensor,
        y: torch.Tensor,
    ) -> None:
        """Enqueue y = T(sx sw (xq wq^T) + xo wo^T + bias) on the current stream."""
        m, k = xq.shape
        self._require(
            self._lib.graphopt_mixq_linear(
                _CODES[xo.dtype],
                m,
                wq.shape[0],
                k,
                xo.shape[1],
                *map(_pointer, (xq, sx, xo, wq, sw, wo, bias, y)),
                torch.cuda.current_stream().cuda_stream,
            )
        )


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
