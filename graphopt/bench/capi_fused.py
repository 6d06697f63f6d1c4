"""The C API of producers by themselves over torch tensors."""

__all__ = ["FusedLibrary"]

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.bench.capi import DTYPES, PRODUCERS, Library, pointer_of

if TYPE_CHECKING:
    from torch import Tensor


class FusedLibrary(Library):
    """libgraphopt_plugins.so with the call of producers by themselves.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        with self._calls_of("norms and activations by themselves"):
            self._lib.graphopt_fused.argtypes = (
                [number] * 2 + [long] * 2 + [pointer] * 4 + [ctypes.c_float] + [pointer] * 3
            )

    def fused(
        self,
        producer: str,
        x: "Tensor",
        outputs: "dict[str, Tensor]",
        *,
        other: "Tensor | None" = None,
        gamma: "Tensor | None" = None,
        beta: "Tensor | None" = None,
        epsilon: float = 0.0,
    ) -> None:
        """Enqueue y = T(producer(x, other, gamma, beta)) on the current stream.

        Args:
            producer: name of a quantizing op that has it too, without "MixQ"; none of a GLU.
            x: [M, K] input, or the gate.
            outputs: y [M, K] and, where wanted, sum.
            other: [M, K] residual or up.
            gamma: [K], of a norm.
            beta: [K], of a layer norm.
            epsilon: of a norm.
        """
        self._require(
            self._lib.graphopt_fused(
                PRODUCERS.index(f"MixQ{producer}"),
                DTYPES[str(x.dtype)],
                *x.shape,
                *map(pointer_of, (x, other, gamma, beta)),
                epsilon,
                *map(pointer_of, (outputs.get(name) for name in ("y", "sum"))),
                self._stream(),
            )
        )
