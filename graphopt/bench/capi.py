"""The C API of the plugin library over torch tensors. Needs torch with CUDA, not TensorRT."""

__all__ = ["DTYPES", "PRODUCERS", "Library", "pointer_of", "torch_with_cuda"]

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import BenchError, PluginError

if TYPE_CHECKING:
    from torch import Tensor

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
    "MixQSwiGLU",
    "MixQGeGLU",
    "MixQGeGLUTanh",
)

#: Activation types, in the order of their numbers in the C API.
DTYPES = {"torch.float32": 0, "torch.float16": 1, "torch.bfloat16": 2}


def torch_with_cuda() -> Any:
    """Import torch.

    Raises:
        BenchError: there is no torch, or none that sees a GPU.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as e:
        raise BenchError("kernels are timed through torch, which is not installed here; pip install torch") from e
    if not torch.cuda.is_available():
        raise BenchError("torch sees no CUDA GPU here; run this on a machine that has one")
    return torch


class Library:
    """libgraphopt_plugins.so.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self._torch = torch_with_cuda()
        self.path = path
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        try:
            self._lib = ctypes.CDLL(str(path))
            for name in ("graphopt_status_string", "graphopt_plugins_version", "graphopt_plugins_build_info"):
                getattr(self._lib, name).restype = ctypes.c_char_p
            quantize = [number, number, long, long, long] + [pointer] * 5 + [ctypes.c_float] + [pointer] * 6
            self._lib.graphopt_mixq_quantize.argtypes = quantize
            self._lib.graphopt_mixq_quantize4.argtypes = quantize
            self._lib.graphopt_mixq_linear.argtypes = [number] + [long] * 4 + [pointer] * 9
            self._lib.graphopt_mixq_linear_w4a8.argtypes = [number] + [long] * 5 + [pointer] * 10
            self._lib.graphopt_mixq_linear_w4a4.argtypes = [number] + [long] * 5 + [pointer] * 11
            self._lib.graphopt_mixq_linear_add.argtypes = [number] + [long] * 4 + [pointer] * 10
            self._lib.graphopt_mixq_linear_w4a8_add.argtypes = [number] + [long] * 5 + [pointer] * 11
            self._lib.graphopt_mixq_linear_w4a4_add.argtypes = [number] + [long] * 5 + [pointer] * 12
            self._workspace_bytes = self._lib.graphopt_mixq_linear_w4a4_workspace_bytes
            self._workspace_bytes.argtypes, self._workspace_bytes.restype = [long] * 2, long
        except (OSError, AttributeError) as e:
            raise PluginError(f"{path} is not a plugin library that can be loaded here ({e}); build it again") from e

    @property
    def build_info(self) -> str:
        """Toolkit, architectures and headers that the library was built with."""
        return str(self._lib.graphopt_plugins_build_info().decode())

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self._lib.graphopt_plugins_version().decode())

    @contextmanager
    def _calls_of(self, what: str) -> Iterator[None]:
        """Around the declaration of the calls of ``what``, which older libraries lack.

        Raises:
            PluginError: the library has not all of them.
        """
        try:
            yield
        except AttributeError as e:
            raise PluginError(f"{self.path} has no {what} ({e}); build it again") from e

    def _require(self, status: int) -> None:
        if status:
            raise RuntimeError(self._lib.graphopt_status_string(status).decode())

    def _stream(self) -> int:
        return int(self._torch.cuda.current_stream().cuda_stream)

    def _enqueue(
        self, function: Any, typed: "Tensor", sizes: Sequence[int], operands: "Sequence[Tensor | None]"
    ) -> None:
        """Call ``function`` with the number of the type of ``typed``, sizes, addresses and the current stream."""
        self._require(function(DTYPES[str(typed.dtype)], *sizes, *map(pointer_of, operands), self._stream()))

    def quantize(
        self,
        producer: str,
        x: "Tensor",
        idx: "Tensor",
        outputs: "dict[str, Tensor]",
        *,
        other: "Tensor | None" = None,
        gamma: "Tensor | None" = None,
        beta: "Tensor | None" = None,
        epsilon: float = 0.0,
    ) -> None:
        """Enqueue a quantizing op on the current stream.

        Args:
            producer: one of PRODUCERS.
            x: [M, K] input, or the gate; [M, 2K] of a GLU.
            idx: [C] int32, ascending, padded with -1.
            outputs: xq, or xq4 for codes of 4 bits; sx, xo and, where wanted, sum and y.
            other: [M, K] residual or up.
            gamma: [K], of a norm.
            beta: [K], of a layer norm.
            epsilon: of a norm.
        """
        rows, cols = x.shape[0], x.shape[1] // (2 if "GLU" in producer else 1)
        codes = "xq4" if "xq4" in outputs else "xq"
        function = self._lib.graphopt_mixq_quantize4 if codes == "xq4" else self._lib.graphopt_mixq_quantize
        self._require(
            function(
                PRODUCERS.index(producer),
                DTYPES[str(x.dtype)],
                rows,
                cols,
                len(idx),
                *map(pointer_of, (x, other, gamma, beta, idx)),
                epsilon,
                *map(pointer_of, (outputs.get(name) for name in (codes, "sx", "xo", "sum", "y"))),
                self._stream(),
            )
        )

    def linear(
        self,
        xq: "Tensor",
        sx: "Tensor",
        xo: "Tensor",
        wq: "Tensor",
        sw: "Tensor",
        wo: "Tensor",
        bias: "Tensor",
        y: "Tensor",
        residual: "Tensor | None" = None,
    ) -> None:
        """Enqueue y = T(sx sw (xq wq^T) + xo wo^T + bias + residual) on the current stream; shapes as in params.h."""
        m, k = xq.shape
        operands = (xq, sx, xo, wq, sw, wo, bias, residual, y)
        shape = (m, wq.shape[0], k, xo.shape[1])
        self._enqueue(self._lib.graphopt_mixq_linear_add, xo, shape, operands)

    def linear_w4a8(
        self,
        xq: "Tensor",
        sx: "Tensor",
        xo: "Tensor",
        wq4: "Tensor",
        sg: "Tensor",
        sw: "Tensor",
        wo: "Tensor",
        bias: "Tensor",
        y: "Tensor",
        residual: "Tensor | None" = None,
        *,
        group: int,
    ) -> None:
        """Enqueue the linear with 4-bit weights and 8-bit activations; shapes as in params.h."""
        m, k = xq.shape
        operands = (xq, sx, xo, wq4, sg, sw, wo, bias, residual, y)
        shape = (m, len(wq4), k, xo.shape[1], group)
        self._enqueue(self._lib.graphopt_mixq_linear_w4a8_add, xo, shape, operands)

    def linear_w4a4(
        self,
        xq4: "Tensor",
        sx: "Tensor",
        xo: "Tensor",
        wq4: "Tensor",
        sg: "Tensor",
        sw: "Tensor",
        wo: "Tensor",
        bias: "Tensor",
        y: "Tensor",
        residual: "Tensor | None" = None,
        *,
        group: int,
        workspace: "Tensor | None" = None,
    ) -> None:
        """Enqueue the linear with 4-bit weights and activations; K is what the rows of xq4 hold, padding included.

        Args:
            workspace: scratch memory of `workspace_bytes`; allocated here if there is none.
        """
        m, k = len(xq4), 2 * xq4.shape[1]
        if workspace is None:
            workspace = self._torch.empty(max(1, self.workspace_bytes(m, k)), dtype=self._torch.int8, device=y.device)
        operands = (xq4, sx, xo, wq4, sg, sw, wo, bias, residual, y, workspace)
        shape = (m, len(wq4), k, xo.shape[1], k if len(sg) == 1 else group)
        self._enqueue(self._lib.graphopt_mixq_linear_w4a4_add, xo, shape, operands)

    def workspace_bytes(self, m: int, k: int) -> int:
        """Return the scratch bytes of `linear_w4a4` for [M, K]."""
        return int(self._workspace_bytes(m, k))


def pointer_of(tensor: "Tensor | None") -> int | None:
    """Return the address of a tensor; None for one that is not there."""
    return None if tensor is None else tensor.data_ptr()
