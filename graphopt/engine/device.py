"""The few CUDA runtime calls that running an engine takes: memory, one stream, events and graphs.

The package ``cuda-python`` is imported when a device is asked for, and not before.
"""

__all__ = ["Buffer", "Device", "Graph"]

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import EngineError

_MODULE = "cuda.bindings.runtime"


@dataclass(frozen=True)
class Buffer:
    """Device memory: its address and size in bytes."""

    address: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured CUDA graph, ready to launch."""

    handle: Any


class Device:
    """The current CUDA device with one stream; a context manager that frees what was allocated through it.

    Raises:
        EngineError: on entry, if cuda-python or a GPU is missing; from any method, if CUDA refuses.
    """

    def __init__(self) -> None:
        try:
            self._rt = importlib.import_module(_MODULE)
        except ImportError as e:
            raise EngineError("running an engine needs the Python package cuda-python: pip install cuda-python") from e
        self._buffers: dict[int, Buffer] = {}
        self._graphs: list[Graph] = []
        self.stream = 0

    def __enter__(self) -> "Device":
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))
        self._events = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failed kernel every call fails; the failure itself is already on its way to the user.
        for graph in self._graphs:
            self._rt.cudaGraphExecDestroy(graph.handle)
        for buffer in list(self._buffers.values()):
            self._rt.cudaFree(buffer.address)
        self._buffers.clear()
        for event in self._events:
            self._rt.cudaEventDestroy(event)
        self._rt.cudaStreamDestroy(self.stream)

    def allocate(self, size: int) -> Buffer:
        """Return ``size`` bytes of device memory; at least one byte, because TensorRT wants an address for nothing."""
        error, address = self._rt.cudaMalloc(max(size, 1))
        if error == self._rt.cudaError_t.cudaErrorMemoryAllocation:
            free, total = self._call("cudaMemGetInfo")
            raise EngineError(
                f"out of GPU memory: {size / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} of "
                f"{total / 2**20:,.0f} MiB are free; use smaller shapes, or end other programs on this GPU"
            )
        self._check("cudaMalloc", error)
        buffer = Buffer(int(address), size)
        self._buffers[buffer.address] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Give ``buffer`` back."""
        del self._buffers[buffer.address]
        self._call("cudaFree", buffer.address)

    def upload(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous ``array`` into ``buffer``, again and again until it is full."""
        array = np.ascontiguousarray(array)
        kind = self._rt.cudaMemcpyKind
        done = min(array.nbytes, buffer.bytes)
        if not done:
            return
        self._call("cudaMemcpyAsync", buffer.address, array.ctypes.data, done, kind.cudaMemcpyHostToDevice, self.stream)
        while done < buffer.bytes:
            size = min(done, buffer.bytes - done)
            target = buffer.address + done
            self._call(
                "cudaMemcpyAsync", target, buffer.address, size, kind.cudaMemcpyDeviceToDevice, self.stream
            )  # fmt: skip
            done += size
        self.synchronize()

    def download(self, buffer: Buffer, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return what ``buffer`` holds, after the work in the stream."""
        array = np.empty(shape, dtype)
        if array.nbytes:
            kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._call("cudaMemcpyAsync", array.ctypes.data, buffer.address, array.nbytes, kind, self.stream)
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait for the work in the stream."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts into the stream as a graph."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        except EngineError:
            self._rt.cudaStreamEndCapture(self.stream)
            raise
        recorded = self._call("cudaStreamEndCapture", self.stream)
        graph = Graph(self._call("cudaGraphInstantiate", recorded, 0))
        self._call("cudaGraphDestroy", recorded)
        self._graphs.append(graph)
        return graph

    def launch(self, graph: Graph) -> None:
        """Put ``graph`` into the stream."""
        self._call("cudaGraphLaunch", graph.handle, self.stream)

    def discard(self, graph: Graph) -> None:
        """Let go of ``graph``, which is not running."""
        self._graphs.remove(graph)
        self._call("cudaGraphExecDestroy", graph.handle)

    def milliseconds(self, enqueue: Callable[[], None]) -> float:
        """Return the GPU time of what ``enqueue`` puts into the stream."""
        start, end = self._events
        self._call("cudaEventRecord", start, self.stream)
        enqueue()
        self._call("cudaEventRecord", end, self.stream)
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", start, end))

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._rt, function)(*arguments)
        self._check(function, error)
        return values[0] if len(values) == 1 else values

    def _check(self, function: str, error: Any) -> None:
        if int(error):
            _, text = self._rt.cudaGetErrorString(error)
            detail = text.decode() if isinstance(text, bytes) else str(text)
            raise EngineError(f"the GPU cannot go on: {function} failed ({detail})")
