"""The C API of M-ANT's linears over torch tensors."""

__all__ = ["DECODERS", "MantLibrary"]

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.bench.capi import DTYPES, Library, pointer_of

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
            self._lib.graphopt_mant_linear.argtypes = [number] * 2 + [long] * 5 + [pointer] * 9

    def mant_linear(self, op: str, operands: "dict[str, Tensor]", y: "Tensor", *, group: int) -> None:
        """Enqueue y [M, N] on the current stream.

        Args:
            op: one of DECODERS.
            operands: x, or xq and sx; codes, types, scale, bias, and table where the op has one; shapes as in params.h.
            y: written.
            group: columns that share a type and a scale.
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
                self._stream(),
            )
        )
