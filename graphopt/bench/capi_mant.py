"""The C API of M-ANT's linears over torch tensors."""

__all__ = ["DECODERS", "MantLibrary"]

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.bench.capi import DTYPES, Library, pointer_of, torch_with_cuda

if TYPE_CHECKING:
    from torch import Tensor

#: Linears by plugin name, in the order of their numbers in the C API.
DECODERS = ("MANTLinear", "MANTLinearW4A8", "MANTLinearInt8")


class MantLibrary(Library):
    """libgraphopt_plugins.so with the linears of M-ANT.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        with self._calls_of("linears of M-ANT"):
            self._lib.graphopt_mant_linear.argtypes = [number] * 2 + [long] * 5 + [pointer] * 10
            self._lib.graphopt_mant_linear_workspace_bytes.argtypes = [number] + [long] * 4
            self._lib.graphopt_mant_linear_workspace_bytes.restype = long
        self._workspace: Tensor | None = None

    def mant_linear(
        self, op: str, operands: "dict[str, Tensor]", y: "Tensor", *, group: int, exact: bool = False
    ) -> None:
        """Enqueue y [M, N] on the current stream. The workspace is one for all calls, which must be in order.

        Args:
            op: one of DECODERS.
            operands: x, or xq and sx; codes, types, scale, bias, and table where the op has one; shapes as in params.h.
            y: written.
            group: columns that share a type and a scale.
            exact: whether weights may not be rounded before the product of int8 activations.
        """
        x = operands["x" if op == "MANTLinear" else "xq"]
        sx = operands.get("sx")
        shape = (*x.shape, 1 if sx is None else sx.shape[1])
        names = ("sx", "codes", "types", "scale", "table", "bias")
        self._require(
            self._lib.graphopt_mant_linear(
                DECODERS.index(op),
                DTYPES[str(y.dtype)],
                shape[0],
                y.shape[1],
                shape[1],
                group,
                shape[2],
                x.data_ptr(),
                *(pointer_of(operands.get(name)) for name in names),
                y.data_ptr(),
                None if exact else pointer_of(self._workspace_for(op, shape[0], y.shape[1], shape[1], group)),
                self._stream(),
            )
        )

    def _workspace_for(self, op: str, m: int, n: int, k: int, group: int) -> "Tensor | None":
        size = self._lib.graphopt_mant_linear_workspace_bytes(DECODERS.index(op), m, n, k, group)
        if size and (self._workspace is None or self._workspace.numel() < size):
            torch = torch_with_cuda()
            self._workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        return self._workspace if size else None
