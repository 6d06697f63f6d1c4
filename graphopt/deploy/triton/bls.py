"""A plan that Triton's TensorRT backend executes, behind the interface of a runner.

A loop is one sequence of the engine model: Triton keeps its state, the key-value cache, from call to call, and puts
calls of several sequences into one batch.
"""

__all__ = ["BlsRunner"]

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from graphopt.engine.manifest import Manifest
from graphopt.engine.profiles import Shape
from graphopt.errors import DeployError, ModelError
from graphopt.runners.plan import plan_inputs
from graphopt.runners.protocol import Array


class BlsRunner:
    """An engine model of this server; see `graphopt.runners.protocol.Runner`.

    Args:
        path: of the plan, for messages.
        manifest: of the plan.
        engine: name of the engine model.
        backend: Triton's module ``triton_python_backend_utils``; None where nothing is to be run.
    """

    def __init__(self, path: Path, manifest: Manifest, engine: str, backend: Any = None) -> None:
        self.path, self.cache, self.scheme, self.profiles = path, manifest.cache, manifest.scheme, manifest.profiles
        self.inputs = plan_inputs(manifest, path)
        self.outputs = tuple(t.name for t in manifest.outputs)
        self.note = f"Triton's model {engine}"
        self._engine, self._backend = engine, backend
        self._loop: _Sequence | None = None

    def __enter__(self) -> "BlsRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run a sequence of one call; its state starts empty. Feeds for the state are not taken."""
        wanted = [n for n in self.outputs if n not in self._states().values()] if outputs is None else list(outputs)
        sequence = _Sequence(self._backend, self._engine)
        return sequence.run({n: a for n, a in feeds.items() if n not in self._states()}, wanted, last_call=True)

    def loop(self, state: Mapping[str, str], shapes: Mapping[str, Shape], *, in_place: bool) -> "_Sequence":
        """See the protocol; Triton gives the state the shapes of config.pbtxt.

        Raises:
            DeployError: the state is not the cache that the engine model keeps.
        """
        if dict(state) != self._states():
            raise DeployError(f"Triton keeps caches of fixed size only; optimize {self.path} with --kv-cache static")
        self.end()
        self._loop = _Sequence(self._backend, self._engine)
        return self._loop

    def end(self) -> None:
        """End the sequence that is open, so that Triton takes another one in its place."""
        sequence, self._loop = self._loop, None
        if sequence is not None:
            sequence.end()

    def _states(self) -> dict[str, str]:
        return dict(self.cache.pairs) if self.cache else {}


class _Sequence:
    """One sequence of the engine model; see `graphopt.runners.protocol.Loop`."""

    def __init__(self, backend: Any, engine: str) -> None:
        self._backend, self._engine = backend, engine
        # 0 means "no sequence".
        self._id = secrets.randbits(62) + 1
        self._last: tuple[dict[str, Array], str] | None = None

    def call(self, feeds: Mapping[str, Array], wanted: str, *, last: bool) -> Array:
        """See the protocol."""
        rows: Array = self.run(feeds, [wanted])[wanted][0]
        self._last = {name: array[:, -1:] if array.ndim > 1 else array for name, array in feeds.items()}, wanted
        return rows[-1:] if last else rows

    def end(self) -> None:
        """Say that no call follows: only a call can say so, and its result is thrown away."""
        if self._last is not None:
            feeds, wanted = self._last
            self._last = None
            self.run(feeds, [wanted], first_call=False, last_call=True)

    def run(
        self,
        feeds: Mapping[str, Array],
        wanted: Sequence[str],
        *,
        first_call: bool | None = None,
        last_call: bool = False,
    ) -> dict[str, Array]:
        """Send one request and wait for its outputs.

        Raises:
            ModelError: the engine model refuses it.
        """
        backend = self._backend
        first = self._last is None if first_call is None else first_call
        flags = backend.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if first else 0
        flags |= backend.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if last_call else 0
        response = backend.InferenceRequest(
            model_name=self._engine,
            # Triton's inputs have an axis behind the batch; config.pbtxt takes it away again.
            inputs=[backend.Tensor(n, np.ascontiguousarray(a.reshape(-1, 1) if a.ndim == 1 else a))
                    for n, a in feeds.items()],
            requested_output_names=list(wanted),
            correlation_id=self._id,
            flags=flags,
            preferred_memory=backend.PreferredMemory(backend.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()  # fmt: skip
        if response.has_error():
            raise ModelError(f"the engine model {self._engine} failed: {response.error().message()}")
        return {n: backend.get_output_tensor_by_name(response, n).as_numpy() for n in wanted}
