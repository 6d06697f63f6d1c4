"""CUDA and TensorRT as far as running a plan needs them, on the host: memory is numpy's, a plan is an ONNX file.

Addresses are real: what the runner binds to the wrong memory, forgets to upload or swaps the wrong way gives wrong
values, as on a GPU. Work happens when it is enqueued; a captured graph is the list of calls to repeat.
"""

import ctypes
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.engine import device, run
from graphopt.engine import manifest as manifests
from graphopt.engine.manifest import FORMAT, Manifest, Plugins, Source, Tensor
from graphopt.engine.messages import Messages
from graphopt.engine.profiles import Profile, Range, Shape

_NAMES = {"float": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "int8": "INT8"}
_KINDS = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "INT8": np.int8}


class HostCuda:
    """Stands for cuda.bindings.runtime."""

    cudaStreamNonBlocking = 1  # noqa: N815 (CUDA's name)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.engines = self.contexts = 0
        self._thread = threading.local()
        self.graphs: list[list[Callable[[], None]]] = []
        self.destroyed: list[list[Callable[[], None]]] = []
        self.launches = 0
        self.downloaded = 0
        self.cudaError_t = SimpleNamespace(cudaErrorMemoryAllocation=2)
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToDevice="d2d", cudaMemcpyDeviceToHost="d2h"
        )
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: (0, 1)

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN where nothing was written
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memmove(to, source, size)
        self.downloaded += size if kind == "d2h" else 0
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self._thread.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self._thread.recording = self._thread.recording, None
        self.graphs.append(recorded or [])
        return 0, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        return 0, graph

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        self.destroyed.append(graph)
        return (0,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.launches += 1
        for work in graph:
            work()
        return (0,)

    def enqueue(self, work: Callable[[], None]) -> None:
        if (recording := getattr(self._thread, "recording", None)) is not None:
            recording.append(work)
        else:
            work()


class HostContext:
    """Stands for IExecutionContext: runs the file in ONNX Runtime on the bound memory."""

    def __init__(self, engine: "HostEngine") -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()
        self.profiler: Any = None
        # As in TensorRT 8: an engine's first context begins with its first profile, and the others with none.
        self.active_optimization_profile = -1 if engine.contexts else 0
        engine.contexts += 1
        engine.cuda.contexts += 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self.active_optimization_profile < 0:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        return self.engine.output_shape(name, self.shapes)

    def execute_async_v3(self, stream: int) -> bool:
        feeds = dict(self.shapes)
        self.engine.cuda.enqueue(lambda: self._run(feeds))
        if self.profiler is not None:
            self.profiler.report_layer_time("everything", 0.5)
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {n: _view(self.addresses[n], s, self.engine.kinds[n]).copy() for n, s in shapes.items()}
        names = self.engine.outputs
        for name, value in zip(names, self.engine.session.run(names, feeds), strict=True):
            _view(self.addresses[name], value.shape, self.engine.kinds[name])[...] = value


def _view(address: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype(_KINDS[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class HostEngine:
    """Stands for ICudaEngine."""

    def __init__(self, path: str, cuda: HostCuda) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.cuda, self.contexts = cuda, 0
        cuda.engines += 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.kinds = {p.name: _NAMES[p.type.removeprefix("tensor(").removesuffix(")")] for p in self.ports}
        self.num_io_tensors = len(self.ports)
        self.device_memory_size = 1 << 20

    def create_execution_context(self) -> HostContext:
        return HostContext(self)

    def create_engine_inspector(self) -> Any:
        layers = json.dumps({"Layers": [{"Name": "everything", "LayerType": "Session"}]})
        return SimpleNamespace(get_engine_information=lambda form: layers)

    def get_tensor_name(self, index: int) -> str:
        return str(self.ports[index].name)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.kinds[name])

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = next(p.shape for p in self.ports if p.name == name)
        return tuple(d if isinstance(d, int) else -1 for d in shape)

    def output_shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """By the symbols of the declared shapes; where the file declares none, by a run on zeros."""
        sizes: dict[str, int] = {}
        for port in self.session.get_inputs():
            sizes |= {d: n for d, n in zip(port.shape, shapes[port.name], strict=True) if isinstance(d, str)}
        declared = next(p.shape for p in self.ports if p.name == name)
        if all(isinstance(d, int) or d in sizes for d in declared) and declared:
            return tuple(d if isinstance(d, int) else sizes[d] for d in declared)
        (value,) = self.session.run([name], {n: np.zeros(s, _KINDS[self.kinds[n]]) for n, s in shapes.items()})
        return tuple(value.shape)


def write_plan(
    path: Path,
    model: Path,
    profiles: Sequence[dict[str, tuple[Shape, Shape, Shape]]] = (),
    *,
    plugins: bool = True,
) -> Path:
    """Write a "plan" of ``model`` with its manifest; profiles map inputs to (min, opt, max)."""
    engine, proto = HostEngine(str(model), HostCuda()), onnx.load(model, load_external_data=False)
    tensors = [Tensor(p.name, engine.kinds[p.name], engine.get_tensor_shape(p.name)) for p in engine.ports]
    inputs, outputs = ([t for t in tensors if (t.name in engine.inputs) is wanted] for wanted in (True, False))
    content = str(model).encode()
    path.write_bytes(content)
    manifest = Manifest(
        format=FORMAT,
        graphopt="0",
        flavour="tensorrt",
        tensorrt="8.6.0",
        targets=("9.0",),
        plan_sha256="",
        plan_bytes=len(content),
        source=Source(str(model), "", (), {p.key: p.value for p in proto.metadata_props}),
        plugins=Plugins("p.so", "", None, None) if plugins else None,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        profiles=tuple(
            Profile(f"profile {i}", {name: Range(*bounds) for name, bounds in ranges.items()})
            for i, ranges in enumerate(profiles)
        ),
        plugin_layers=0,
        custom_ops={},
        layers={},
        workspace_bytes=None,
        build_seconds=0.0,
        peak_host_bytes=0,
    )
    manifests.path_for(path).write_text(json.dumps(manifest.to_dict()))
    return path


def install(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """Let `graphopt.engine.run` find the host in place of a GPU."""
    cuda = HostCuda()
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: HostEngine(bytes(plan).decode(), cuda))
    trt = SimpleNamespace(
        Runtime=lambda logger: runtime, TensorIOMode=SimpleNamespace(INPUT="input"), IProfiler=object,
        LayerInformationFormat=SimpleNamespace(JSON=1),
    )  # fmt: skip
    flavour = SimpleNamespace(trt=trt, logger=None, messages=Messages())
    monkeypatch.setattr(run, "plugins", SimpleNamespace(locate=lambda *_: Path("p.so"), load=lambda *_: None))
    monkeypatch.setattr(run, "select", lambda name: flavour)
    monkeypatch.setattr(run, "require_usable", lambda plan, library: manifests.read(plan))
    monkeypatch.setattr(device, "importlib", SimpleNamespace(import_module=lambda name: cuda))
    return cuda
