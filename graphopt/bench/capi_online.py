"""The C API of online outlier prediction over torch tensors."""

__all__ = ["OnlineLibrary"]

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.bench.capi import DTYPES, PRODUCERS, Library, pointer_of

if TYPE_CHECKING:
    from torch import Tensor


class OnlineLibrary(Library):
    """libgraphopt_plugins.so with the calls that keep state; states are byte tensors on the device.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, long, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
        lib = self._lib
        with self._calls_of("online prediction"):
            self._prediction_bytes = lib.graphopt_mixq_prediction_state_bytes
            self._columns_bytes = lib.graphopt_mixq_columns_state_bytes
            lib.graphopt_mixq_prediction_init.argtypes = [long] * 3 + [pointer] * 3
            lib.graphopt_mixq_quantize_online.argtypes = (
                [number] * 2 + [long] * 4 + [pointer] * 5 + [real] * 3 + [pointer] * 8
            )
            lib.graphopt_mixq_columns_init.argtypes = [number] + [long] * 2 + [pointer] * 2
            lib.graphopt_mixq_columns.argtypes = [number] + [long] * 5 + [pointer] * 9
        self._prediction_bytes.argtypes, self._prediction_bytes.restype = [long] * 2, long
        self._columns_bytes.argtypes, self._columns_bytes.restype = [number, long, long], long

    def prediction_state(self, idx: "Tensor", cols: int, capacity: int) -> "Tensor":
        """Return the state of a quantizing op that knows the channels ``idx`` [C] int32."""
        state = self._bytes(self._prediction_bytes(cols, capacity))
        arguments = (cols, len(idx), capacity, idx.data_ptr(), state.data_ptr(), self._stream())
        self._require(self._lib.graphopt_mixq_prediction_init(*arguments))
        return state

    def quantize_online(
        self,
        producer: str,
        x: "Tensor",
        idx: "Tensor",
        outputs: "dict[str, Tensor]",
        state: "Tensor",
        *,
        sigma: float = 0.0,
        sigma_rms: float = 0.0,
        other: "Tensor | None" = None,
        gamma: "Tensor | None" = None,
        beta: "Tensor | None" = None,
        epsilon: float = 0.0,
    ) -> None:
        """Enqueue a quantizing op with prediction on the current stream.

        Args:
            producer: one of PRODUCERS.
            x, other, gamma, beta, epsilon: as in `quantize`.
            idx: [C] int32, known channels.
            outputs: xq, sx, xo, set [capacity] int32 and, where wanted, sum and y.
            state: of `prediction_state`.
            sigma, sigma_rms: thresholds.
        """
        rows, cols = x.shape[0], x.shape[1] // (2 if "GLU" in producer else 1)
        self._require(
            self._lib.graphopt_mixq_quantize_online(
                PRODUCERS.index(producer),
                DTYPES[str(x.dtype)],
                rows,
                cols,
                len(idx),
                len(outputs["set"]),
                *map(pointer_of, (x, other, gamma, beta, idx)),
                epsilon,
                sigma,
                sigma_rms,
                *(pointer_of(outputs.get(name)) for name in ("xq", "sx", "xo", "sum", "y", "set")),
                state.data_ptr(),
                self._stream(),
            )
        )

    def columns_state(self, wo: "Tensor", capacity: int) -> "tuple[Tensor, Tensor]":
        """Return (state, columns): the state of a linear, and its part [N, capacity] that `columns` fills."""
        n, dtype = len(wo), DTYPES[str(wo.dtype)]
        state = self._bytes(self._columns_bytes(dtype, n, capacity))
        arguments = (dtype, n, capacity, state.data_ptr(), self._stream())
        self._require(self._lib.graphopt_mixq_columns_init(*arguments))
        used = n * capacity * wo.element_size()
        return state, state[len(state) - used :].view(wo.dtype).view(n, capacity)

    def columns(
        self,
        codes: "Tensor",
        sw: "Tensor",
        wo: "Tensor",
        idx: "Tensor",
        predicted: "Tensor",
        state: "Tensor",
        *,
        sg: "Tensor | None" = None,
        group: int = 0,
    ) -> None:
        """Enqueue making the outlier columns for the channels ``predicted`` [capacity] int32.

        ``codes`` are wq, or wq4 where ``sg`` and ``group`` are given.
        """
        address = ctypes.c_void_p()
        k = codes.shape[1] * (2 if group else 1)
        self._require(
            self._lib.graphopt_mixq_columns(
                DTYPES[str(wo.dtype)],
                len(wo),
                k,
                len(idx),
                len(predicted),
                group,
                *map(pointer_of, (codes, sg, sw, wo, idx, predicted, state)),
                ctypes.byref(address),
                self._stream(),
            )
        )
        if address.value != state.data_ptr() + len(state) - len(wo) * len(predicted) * wo.element_size():
            raise RuntimeError("the columns are not where columns_state said")

    def _bytes(self, count: int) -> "Tensor":
        return self._torch.zeros(count, dtype=self._torch.uint8, device="cuda")
