"""The C API of vector-quantized weights over torch tensors."""

__all__ = ["VqFormat", "VqLibrary"]

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.bench.capi import DTYPES, PRODUCERS, Library, pointer_of
from graphopt.errors import PluginError
from graphopt.generated import generate

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class VqFormat:
    """VQ<vector, bits, residuals>.

    Attributes:
        vector, bits, residuals: v, b and r.
        tile: rows and columns of the weight that share codebooks; 0: the whole weight.
        lattice: whether entries are points of the lattice E8.
    """

    vector: int
    bits: int
    residuals: int
    tile: int = 0
    lattice: bool = False

    def row_bytes(self, k: int) -> int:
        """Bytes of a row of codes of K columns."""
        return -(-(-(-k // self.vector) * self.residuals * self.bits) // 128) * 16

    def tiles(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns that share codebooks."""
        return (self.tile, self.tile) if self.tile else (n, k)

    def codebooks_shape(self, n: int, k: int) -> tuple[int, ...]:
        """(Gn, Gk, r, 2^b, v)."""
        rows, columns = self.tiles(n, k)
        return -(-n // rows), -(-k // columns), self.residuals, 1 << self.bits, self.vector


class VqLibrary(Library):
    """libgraphopt_plugins.so with the calls of vector-quantized weights.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        lib = self._lib
        with self._calls_of("vector-quantized weights"):
            lib.graphopt_vq_linear.argtypes = [number] + [long] * 3 + [number] * 3 + [long] * 2 + [pointer] * 8
            lib.graphopt_vq_linear_e8.argtypes = [number] + [long] * 3 + [number] + [pointer] * 8
            of_hadamard = [number] * 2 + [long] * 4 + [pointer] * 5 + [ctypes.c_float] + [pointer] * 4
            lib.graphopt_vq_hadamard.argtypes = of_hadamard
            self._workspace = lib.graphopt_vq_linear_workspace_bytes
        self._workspace.argtypes, self._workspace.restype = [long] * 3 + [number] * 3 + [long] * 2, long

    def workspace(self, fmt: VqFormat, m: int, n: int, k: int) -> "Tensor":
        """Return scratch memory for `vq_linear` of at most ``m`` tokens, which may be empty."""
        size = self._workspace(m, n, k, fmt.vector, fmt.bits, fmt.residuals, *fmt.tiles(n, k))
        return self._torch.empty(size, dtype=self._torch.int8, device="cuda")

    def generate(self, fmt: VqFormat, dtype: "torch.dtype", n: int, k: int) -> dict[str, Any]:
        """Make kernels for a format that has none of its own, and have `vq_linear` run them; return their numbers.

        Raises:
            PluginError: none can be made; the library's own sentence.
        """
        major, minor = self._torch.cuda.get_device_capability()
        sizes = n, k, fmt.vector, fmt.bits, fmt.residuals, *fmt.tiles(n, k)
        made, reason = generate(self._lib, DTYPES[str(dtype)], sizes, 10 * major + minor)
        if not made:
            raise PluginError(reason or f"{fmt} needs no generated kernels")
        return made

    def vq_linear(
        self,
        fmt: VqFormat,
        x: "Tensor",
        codes: "Tensor",
        books: "Tensor",
        scale: "Tensor",
        bias: "Tensor",
        y: "Tensor",
        workspace: "Tensor | None" = None,
    ) -> None:
        """Enqueue y = T(scale (x c^T) + bias) on the current stream.

        Args:
            fmt: of the codes.
            x: [M, K] T.
            codes: [N, row_bytes] int8.
            books: codebooks (Gn, Gk, r, 2^b, v) float16, or ratios [r] float32 of the lattice.
            scale: [N] float32.
            bias: [N] T.
            y: [M, N] T.
            workspace: of `workspace`; without, kernels that need one are not used.
        """
        (m, k), n = x.shape, len(codes)
        scratch = workspace if workspace is not None and workspace.numel() else None
        sizes, operands = (m, n, k), (x, codes, books, scale, bias, y, scratch)
        if fmt.lattice:
            self._enqueue(self._lib.graphopt_vq_linear_e8, x, (*sizes, fmt.residuals), operands)
        else:
            how = fmt.vector, fmt.bits, fmt.residuals, *fmt.tiles(n, k)
            self._enqueue(self._lib.graphopt_vq_linear, x, (*sizes, *how), operands)

    def hadamard(
        self,
        producer: str,
        x: "Tensor",
        signs: "Tensor",
        block: int,
        outputs: "dict[str, Tensor]",
        *,
        other: "Tensor | None" = None,
        gamma: "Tensor | None" = None,
        beta: "Tensor | None" = None,
        epsilon: float = 0.0,
    ) -> None:
        """Enqueue the randomized Hadamard transform of what a producer makes on the current stream.

        Args:
            producer: name of a quantizing op that has it too, without "MixQ", or "Plain"; none of a GLU.
            x: [M, K] input, or the gate.
            signs: [K'] int8.
            block: size of a block of H.
            outputs: z [M, K'] and, where wanted, sum and y.
            other: [M, K] residual or up.
            gamma: [K], of a norm.
            beta: [K], of a layer norm.
            epsilon: of a norm.
        """
        number = PRODUCERS.index(f"MixQ{producer}") if producer != "Plain" else 0
        self._require(
            self._lib.graphopt_vq_hadamard(
                number,
                DTYPES[str(x.dtype)],
                *x.shape,
                len(signs),
                block,
                *map(pointer_of, (x, other, gamma, beta, signs)),
                epsilon,
                *map(pointer_of, (outputs.get(name) for name in ("z", "sum", "y"))),
                self._stream(),
            )
        )
