"""Run a plan: choose the profile by the shapes, bind device memory, execute; with or without a CUDA graph."""

__all__ = ["LayerTime", "Memory", "Runner", "random_input", "random_inputs"]

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.engine import plugins
from graphopt.engine.device import Buffer, Device, Graph
from graphopt.engine.flavour import select
from graphopt.engine.inspect import require_usable
from graphopt.engine.profiles import Profile, Shape
from graphopt.errors import EngineError, nearest

Array = npt.NDArray[Any]

#: TensorRT's name of an element type -> numpy's.
_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32, "HALF": np.float16, "BF16": ml_dtypes.bfloat16, "INT8": np.int8, "UINT8": np.uint8,
    "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "FP8": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
#: Values of random integer inputs whose meaning is unknown are below this: small enough to index any table.
_SMALL = 32
_OUTLIER_SCALE = 20


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer of the engine per run, in microseconds; ``op`` is its plugin or TensorRT's name of its kind."""

    name: str
    op: str
    us: float


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: the plan (mostly weights), TensorRT's scratch, the cache, the other inputs and outputs."""

    plan: int
    scratch: int
    cache: int
    other_io: int


@dataclass(frozen=True)
class _Port:
    """One input or output of the engine."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


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
        self._graph: Graph | None = None
        self._profile_index = 0
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self.inputs: tuple[_Port, ...] = ()
        self.outputs: tuple[_Port, ...] = ()

    def __enter__(self) -> "Runner":
        self.manifest = require_usable(self._plan, self._plugin_library)
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

    def _load(self) -> None:
        self._runtime = self._flavour.trt.Runtime(self._flavour.logger)
        with self._flavour.messages.record() as record:
            self._engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
            if self._engine is None:
                raise EngineError(f"{self._flavour} cannot load {self._plan} here: {record.reason()}; build it again")
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"{self._flavour} cannot run {self._plan}: {record.reason()}")
        mode = self._flavour.trt.TensorIOMode.INPUT
        ports = tuple(self._port(self._engine.get_tensor_name(i), mode) for i in range(self._engine.num_io_tensors))
        self.inputs = tuple(p for p in ports if p.is_input)
        self.outputs = tuple(p for p in ports if not p.is_input)

    def _port(self, name: str, input_mode: Any) -> _Port:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"tensor '{name}' of {self._plan} has type {kind}, which cannot be passed from here")
        return _Port(name, np.dtype(_DTYPES[kind]), self._engine.get_tensor_mode(name) == input_mode)

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
        self._graph = None
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

    def _place(self, port: _Port, shape: Shape) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * port.dtype.itemsize
        known = self._buffers.get(port.name)
        if known is None or known.bytes < size:
            if known is not None:
                self.device.free(self._buffers.pop(port.name))
            known = self._buffers[port.name] = self.device.allocate(size)
        self._context.set_tensor_address(port.name, known.address)

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
        for port in self.inputs:
            self.device.upload(self._buffers[port.name], _converted(feeds[port.name], port))

    def fill(self, shapes: Mapping[str, Shape], seed: int = 0) -> None:
        """Bind for ``shapes`` and fill the inputs with random values; big ones repeat a smaller random block."""
        self.bind(shapes)
        for port in self.inputs:
            array = random_input(port.name, self._shapes[port.name], port.dtype, shapes, seed)
            self.device.upload(self._buffers[port.name], array)

    def outputs_now(self, *names: str) -> dict[str, Array]:
        """Copy outputs to the host: those named, or all."""
        return {
            p.name: self.device.download(self._buffers[p.name], self._shapes[p.name], p.dtype)
            for p in self.outputs
            if not names or p.name in names
        }

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
        self._graph = self.device.capture(self.execute)

    def infer(self, feeds: Mapping[str, Array], *, cuda_graph: bool = False) -> dict[str, Array]:
        """Return the outputs for ``feeds``.

        Args:
            feeds: one array per input; integers may be wider than the plan's if their values fit.
            cuda_graph: run through a CUDA graph.

        Raises:
            EngineError: as `set_inputs` and `execute`.
        """
        self.set_inputs(feeds)
        if cuda_graph:
            self.capture()
        self.execute()
        return self.outputs_now()

    # -- measurements

    def milliseconds(self) -> float:
        """GPU time of one run."""
        return self.device.milliseconds(self.execute)

    def memory(self) -> Memory:
        """What the plan takes on the device with the shapes in use."""
        scratch = getattr(self._engine, "device_memory_size_v2", None) or self._engine.device_memory_size
        sizes = {name: buffer.bytes for name, buffer in self._buffers.items()}
        cache = sum(size for name, size in sizes.items() if name.startswith(("past", "present")))
        return Memory(self.manifest.plan_bytes, int(scratch), cache, sum(sizes.values()) - cache)

    def layer_times(self, runs: int = 10) -> list[LayerTime]:
        """Mean time of every layer over ``runs`` runs; time whole runs before: profiling stays on."""
        self._graph = None
        totals: dict[str, float] = {}
        base = self._flavour.trt.IProfiler

        class Profiler(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        profiler = Profiler()
        self.execute()
        self.device.synchronize()
        self._context.profiler = profiler
        for _ in range(runs):
            self.execute()
            self.device.synchronize()
        ops = self._layer_ops()
        return [LayerTime(name, ops.get(name, "other"), 1e3 * ms / runs) for name, ms in totals.items()]

    def _layer_ops(self) -> dict[str, str]:
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._flavour.trt.LayerInformationFormat.JSON)
        layers = [entry for entry in json.loads(text).get("Layers", []) if isinstance(entry, dict)]
        return {e.get("Name", ""): e.get("PluginType") or e.get("LayerType") or "other" for e in layers}


def random_inputs(runner: Runner, shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, Array]:
    """Seeded values for every input of ``runner``, as `random_input` makes them, in full."""
    return {
        p.name: np.resize(random_input(p.name, shapes[p.name], p.dtype, shapes, seed), shapes[p.name])
        for p in runner.inputs
    }


def random_input(name: str, shape: Shape, dtype: np.dtype[Any], shapes: Mapping[str, Shape], seed: int) -> Array:
    """Values for one input, at most a few million of them, to be repeated.

    Floats are normal with one channel in 64 planted 20 times larger. ``attention_mask`` is all ones, ``position_ids``
    count on from the length of the cache, other integers are small.

    Args:
        name: of the input.
        shape: its shape.
        dtype: its type.
        shapes: those of all inputs; the cache's gives the first position.
        seed: of the values.
    """
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    if name == "attention_mask" or dtype == np.bool_:
        return np.ones(shape, dtype)
    if name == "position_ids":
        past = next((s[2] for n, s in shapes.items() if n.startswith("past")), 0)
        return np.broadcast_to(np.arange(past, past + shape[-1], dtype=dtype), shape).copy()
    rows = max(1, (4 << 20) // max(1, shape[-1] if shape else 1))
    block = (min(rows, int(np.prod(shape[:-1], dtype=np.int64))), shape[-1]) if shape else ()
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, _SMALL, block).astype(dtype)
    values = rng.standard_normal(block, np.float32)
    if values.ndim:
        values[..., ::64] *= _OUTLIER_SCALE
    return values.astype(dtype)


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


def _converted(array: Array, port: _Port) -> Array:
    """``array`` in the type of ``port``: TensorRT 8, for one, has no 64-bit integers."""
    if array.dtype == port.dtype:
        return array
    converted = array.astype(port.dtype)
    same_kind = np.issubdtype(array.dtype, np.integer) and np.issubdtype(port.dtype, np.integer)
    if not same_kind or not np.array_equal(converted, array):
        raise EngineError(f"input '{port.name}' has type {array.dtype}, the plan wants {port.dtype}; convert the data")
    return converted


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
