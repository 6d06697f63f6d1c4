"""Run a plan: choose the profile by the shapes, bind device memory, execute; with or without a CUDA graph."""

__all__ = ["LayerTime", "Memory", "Runner"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.engine import plugins
from graphopt.engine.device import Buffer, Device, Graph
from graphopt.engine.flavour import select
from graphopt.engine.inspect import require_usable
from graphopt.engine.layers import LayerTime, layer_times
from graphopt.engine.manifest import Manifest
from graphopt.engine.ports import Port, converted, numpy_dtype, random_input
from graphopt.engine.profiles import Profile, Shape
from graphopt.errors import EngineError, nearest

Array = npt.NDArray[Any]

#: Bytes of zeros that are sent to the device to be repeated there.
_ZEROS = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: weights (where TensorRT does not tell, those of the plan), activations and scratch, the
    key-value cache (once, where past and present share an address), the other inputs and outputs."""

    weights: int
    activations: int
    cache: int
    other_io: int


class Runner:
    """A plan on the GPU; use as a context manager.

    Args:
        plan: the plan file, with its manifest beside it.
        plugin_library: the library to run it with; None to look for it.

    Raises:
        EngineError: on entry, if the plan does not fit its manifest, this TensorRT or this GPU.
        PluginError: on entry, if the plugin library is missing or another one.
    """

    def __init__(self, plan: Path, plugin_library: Path | None = None) -> None:
        self._plan = plan
        self._plugin_library = plugin_library
        self.device = Device()
        self._buffers: dict[str, Buffer] = {}
        self._shapes: dict[str, Shape] = {}
        self._shared: dict[str, str] = {}
        self._graph: Graph | None = None
        self._profile_index = 0
        self._parent: Runner | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self.inputs: tuple[Port, ...] = ()
        self.outputs: tuple[Port, ...] = ()

    def __enter__(self) -> "Runner":
        known: Manifest | None = self._parent.manifest if self._parent is not None else None
        self.manifest: Manifest = known or require_usable(self._plan, self._plugin_library)
        self.cache = self.manifest.cache
        self._flavour = select(self.manifest.flavour)
        if self.manifest.plugins is not None:
            plugins.load(plugins.locate(self._plugin_library, self._flavour), self._flavour)
        self.device.__enter__()
        try:
            self._load()
        except BaseException:
            self.device.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # TensorRT's objects use the stream and must go before it.
        self._context = self._engine = self._runtime = None
        self.device.__exit__(kind, error, trace)

    def sibling(self) -> "Runner":
        """Return a runner of the same plan that shares the engine, and so the weights, of this one, which is entered.

        It has a stream, a context and memory for inputs and outputs of its own, and may run at the same time.
        """
        other = Runner(self._plan, self._plugin_library)
        other._parent = self
        return other

    def _load(self) -> None:
        with self._flavour.messages.record() as record:
            if self._parent is not None:
                self._runtime, self._engine = self._parent._runtime, self._parent._engine
            else:
                self._runtime = self._flavour.trt.Runtime(self._flavour.logger)
                self._engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
            if self._engine is None:
                raise EngineError(f"{self._flavour} cannot load {self._plan} here: {record.reason()}; build it again")
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"{self._flavour} cannot run {self._plan}: {record.reason()}")
        # The first context of an engine begins with its first profile; in TensorRT 8, the others begin with none.
        self._profile_index = self._context.active_optimization_profile
        mode = self._flavour.trt.TensorIOMode.INPUT
        ports = tuple(self._port(self._engine.get_tensor_name(i), mode) for i in range(self._engine.num_io_tensors))
        self.inputs = tuple(p for p in ports if p.is_input)
        self.outputs = tuple(p for p in ports if not p.is_input)
        if self.cache is not None and self.in_place:
            self.share({present: past for past, present in self.cache.pairs})

    def _port(self, name: str, input_mode: Any) -> Port:
        dtype = numpy_dtype(self._engine.get_tensor_dtype(name).name, name, self._plan)
        return Port(name, dtype, self._engine.get_tensor_mode(name) == input_mode)

    @property
    def in_place(self) -> bool:
        """Whether a cache may be updated at one address: kernels of ours do, function bodies need not."""
        return self.manifest.plugins is not None

    # -- shapes and memory

    def shapes(self, given: Mapping[str, Shape] | None = None, profile: int = 0) -> dict[str, Shape]:
        """Shapes of all inputs: those ``given``, and for the others the usual ones of a profile.

        Raises:
            EngineError: ``given`` names an unknown input.
        """
        given = dict(given or {})
        names = [p.name for p in self.inputs]
        if unknown := [n for n in given if n not in names]:
            raise EngineError(f"{self._plan} has no input '{unknown[0]}'{nearest(unknown[0], names)}")
        ranges = self.manifest.profiles[profile].ranges if self.manifest.profiles else {}
        return {
            name: given.get(name)
            or (ranges[name].opt if name in ranges else tuple(self._engine.get_tensor_shape(name)))
            for name in names
        }

    def bind(self, shapes: Mapping[str, Shape]) -> None:
        """Choose the profile that takes ``shapes`` and give every input and output device memory, contents undefined.

        Raises:
            EngineError: no profile takes them, an output's shape depends on values, or memory is short.
        """
        self._forget_graph()
        index = _profile_for(self.manifest.profiles, shapes, self._plan)
        with self._flavour.messages.record() as record:
            if index != self._profile_index:
                if not self._context.set_optimization_profile_async(index, self.device.stream):
                    raise EngineError(f"{self._plan} cannot use its profile {index}: {record.reason()}")
                self.device.synchronize()
                self._profile_index = index
            for name, shape in shapes.items():
                if not self._context.set_input_shape(name, shape):
                    raise EngineError(f"{self._plan} refuses shape {_dims(shape)} of input '{name}': {record.reason()}")
        self._shapes = {}
        for port in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(port.name))
            if min(shape, default=0) < 0:
                raise EngineError(f"the shape of output '{port.name}' depends on values; such plans cannot be run here")
            self._shapes[port.name] = shape
            self._place(port, shape)

    def _place(self, port: Port, shape: Shape) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * port.dtype.itemsize
        owner = self._shared.get(port.name, port.name)
        known = self._buffers.get(owner)
        if known is None or known.bytes < size:
            if known is not None:
                self.device.free(self._buffers.pop(owner))
                # What grows by a little, as the outputs of a growing cache do, grows again.
                size = max(size, known.bytes + known.bytes // 2)
            known = self._buffers[owner] = self.device.allocate(size)
        self._context.set_tensor_address(port.name, known.address)

    def share(self, outputs: Mapping[str, str]) -> None:
        """Let each output in ``outputs`` have the memory of an input, from the next `bind` on."""
        self._shared = dict(outputs)
        for output in outputs:
            if output in self._buffers:
                self.device.free(self._buffers.pop(output))

    def swap(self, pairs: Mapping[str, str]) -> None:
        """Exchange the memory of inputs and outputs: what the last run put out is the next one's input."""
        for one, other in pairs.items():
            self._buffers[one], self._buffers[other] = self._buffers[other], self._buffers[one]

    def clear(self, names: Sequence[str]) -> None:
        """Fill the memory of bound inputs with zeros."""
        for name in names:
            self.device.upload(self._buffers[name], np.zeros(_ZEROS, np.uint8))

    def shape(self, name: str) -> Shape:
        """Return the shape that an input or output has been bound with."""
        return self._shapes[name]

    # -- data

    def set_inputs(self, feeds: Mapping[str, Array]) -> None:
        """Bind for the shapes of ``feeds`` and copy them to the device.

        Raises:
            EngineError: an input is missing or unknown, or its values do not fit the type that the plan has.
        """
        missing = [p.name for p in self.inputs if p.name not in feeds]
        if missing:
            raise EngineError(f"input '{missing[0]}' of {self._plan} has no value; add it to the data")
        self.bind(self.shapes({name: array.shape for name, array in feeds.items()}))
        self.upload(feeds)

    def upload(self, feeds: Mapping[str, Array]) -> None:
        """Copy values of bound inputs to the device; the others keep theirs.

        Raises:
            EngineError: values do not fit the type that the plan has.
        """
        for port in self.inputs:
            if port.name in feeds:
                self.device.upload(self._buffers[port.name], converted(feeds[port.name], port))

    def fill(self, shapes: Mapping[str, Shape], seed: int = 0) -> None:
        """Bind for ``shapes`` and fill the inputs with random values; big ones repeat a smaller random block."""
        self.bind(shapes)
        for port in self.inputs:
            array = random_input(port.name, self._shapes[port.name], port.dtype, shapes, seed)
            self.device.upload(self._buffers[port.name], array)

    def outputs_now(self, *names: str) -> dict[str, Array]:
        """Copy outputs to the host: those named, or all."""
        return {
            p.name: self.device.download(self._buffer(p.name), self._shapes[p.name], p.dtype)
            for p in self.outputs
            if not names or p.name in names
        }

    def last_row(self, name: str) -> Array:
        """Copy the last row of an output (1, S, ...) to the host, as (1, ...)."""
        port = next(p for p in self.outputs if p.name == name)
        _, rows, *rest = self._shapes[name]
        size = int(np.prod(rest, dtype=np.int64)) * port.dtype.itemsize
        row = Buffer(self._buffer(name).address + (rows - 1) * size, size)
        return self.device.download(row, (1, *rest), port.dtype)

    def _buffer(self, name: str) -> Buffer:
        return self._buffers[self._shared.get(name, name)]

    # -- execution

    def execute(self) -> None:
        """Put one run into the stream: the captured graph, if there is one."""
        if self._graph is not None:
            self.device.launch(self._graph)
            return
        with self._flavour.messages.record() as record:
            if not self._context.execute_async_v3(self.device.stream):
                raise EngineError(f"{self._plan} failed while running: {record.reason()}")

    @property
    def captured(self) -> bool:
        """Whether `execute` launches a CUDA graph."""
        return self._graph is not None

    def capture(self) -> None:
        """Run once and record the next run as a CUDA graph, which `execute` then launches until the next `bind`."""
        self.execute()
        self.device.synchronize()
        self.record()

    def record(self) -> None:
        """Record a run with the bound shapes, which must have run before, as `capture` does, but do not run it."""
        self._forget_graph()
        self._graph = self.device.capture(self.execute)

    def _forget_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self.device.discard(graph)

    def infer(
        self, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None, cuda_graph: bool = False
    ) -> dict[str, Array]:
        """Return the outputs for ``feeds``.

        Args:
            feeds: one array per input; integers may be wider than the plan's if their values fit.
            outputs: names of those wanted; None for all.
            cuda_graph: run through a CUDA graph.

        Raises:
            EngineError: as `set_inputs` and `execute`.
        """
        self.set_inputs(feeds)
        if cuda_graph:
            self.capture()
        self.execute()
        return self.outputs_now(*(outputs or ()))

    # -- measurements

    def milliseconds(self) -> float:
        """GPU time of one run."""
        return self.device.milliseconds(self.execute)

    def memory(self) -> Memory:
        """What the plan takes on the device with the shapes in use."""
        activations = getattr(self._engine, "device_memory_size_v2", None) or self._engine.device_memory_size
        sizes = {name: buffer.bytes for name, buffer in self._buffers.items()}
        cache = sum(size for name, size in sizes.items() if name.startswith(("past", "present")))
        stat = getattr(self._flavour.trt, "EngineStat", None)
        weights = self._engine.get_engine_stat(stat.TOTAL_WEIGHTS_SIZE) if stat is not None else 0
        return Memory(
            int(weights) if weights > 0 else self.manifest.plan_bytes,
            int(activations),
            cache,
            sum(sizes.values()) - cache,
        )

    def layer_times(self, runs: int = 10) -> list[LayerTime]:
        """Mean time of every layer over ``runs`` runs with the bound shapes.

        They run in a context of their own: a profiler stays attached to a context, and lengthens all its later runs,
        also those of a CUDA graph (by 5 us for each layer, in TensorRT 8.6 on an H100).

        Raises:
            EngineError: there is no memory for a second context, or it failed while running.
        """
        context = self._another_context()

        def execute() -> None:
            with self._flavour.messages.record() as record:
                if not context.execute_async_v3(self.device.stream):
                    raise EngineError(f"{self._plan} failed while running: {record.reason()}")
            self.device.synchronize()

        return layer_times(self._flavour, self._engine, context, execute, runs)

    def _another_context(self) -> Any:
        """A context with the profile, the shapes and the memory of inputs and outputs that are bound."""
        with self._flavour.messages.record() as record:
            context = self._engine.create_execution_context()
            ready = context is not None
            if ready and context.active_optimization_profile != self._profile_index:
                ready = context.set_optimization_profile_async(self._profile_index, self.device.stream)
                self.device.synchronize()
            for port in (*self.inputs, *self.outputs) if ready else ():
                if port.is_input:
                    ready = ready and context.set_input_shape(port.name, self._shapes[port.name])
                context.set_tensor_address(port.name, self._buffer(port.name).address)
            if not ready:
                raise EngineError(f"{self._plan} cannot run in a second context: {record.reason()}")
        return context


def _profile_for(profiles: tuple[Profile, ...], shapes: Mapping[str, Shape], plan: Path) -> int:
    """Index of the profile that takes ``shapes``, the one with the usual shapes nearest to them."""
    best: tuple[float, int] | None = None
    complaint = ""
    for index, profile in enumerate(profiles):
        problem, distance = "", 0.0
        for name, r in profile.ranges.items():
            shape = shapes[name]
            if len(shape) != len(r.min) or not all(a <= s <= b for a, s, b in zip(r.min, shape, r.max, strict=True)):
                problem = f"'{name}' takes {_dims(r.min)} to {_dims(r.max)}, not {_dims(shape)}"
                break
            distance += sum(abs(np.log((1 + s) / (1 + o))) for s, o in zip(shape, r.opt, strict=True))
        if problem:
            complaint = complaint or f"{profile.name}: {problem}"
        elif best is None or distance < best[0]:
            best = distance, index
    if best is None and profiles:
        raise EngineError(f"no profile of {plan} takes these shapes ({complaint}); build it for them")
    return best[1] if best else 0


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
