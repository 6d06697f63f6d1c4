"""The runner of plans: `graphopt.engine.run` behind the common interface."""

__all__ = ["PlanRunner", "built"]

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from graphopt import ir
from graphopt.calibrate.feeds import Feed, declared
from graphopt.engine import manifest as manifests
from graphopt.engine.build import BuildOptions, build
from graphopt.engine.loop import PlanLoop
from graphopt.engine.profiles import Shape
from graphopt.engine.run import Runner as Engine
from graphopt.errors import EngineError
from graphopt.runners.plan import plan_inputs
from graphopt.runners.protocol import Array


class PlanRunner:
    """A plan on the GPU; see `graphopt.runners.protocol.Runner`.

    Args:
        path: the plan, with its manifest beside it.
        plugins: the library to run it with; None to look for it.
        cuda_graph: whether a loop replays a CUDA graph where it can.

    Raises:
        EngineError: the plan has no manifest or, on entry, does not fit this TensorRT or this GPU.
    """

    def __init__(self, path: Path, plugins: Path | None = None, *, cuda_graph: bool = True) -> None:
        manifest = manifests.read(path)
        self.path = path
        self.cache = manifest.cache
        self.scheme = manifest.scheme
        self.profiles = manifest.profiles
        self.inputs = plan_inputs(manifest, path)
        self.outputs = tuple(t.name for t in manifest.outputs)
        self.note = f"{'TensorRT-RTX' if manifest.flavour == 'rtx' else 'TensorRT'} {manifest.tensorrt}"
        self._cuda_graph = cuda_graph
        self._plugins = plugins
        self._parent: PlanRunner | None = None
        self._open: Engine | None = None

    def __enter__(self) -> "PlanRunner":
        engine = Engine(self.path, self._plugins) if self._parent is None else self._parent._engine.sibling()
        self._open = engine.__enter__()
        return self

    def sibling(self) -> "PlanRunner":
        """Return another runner of the plan that shares the weights of this one, which is entered when it is."""
        other = PlanRunner(self.path, self._plugins, cuda_graph=self._cuda_graph)
        other._parent = self
        return other

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, trace)
        self._open = None

    @property
    def _engine(self) -> Engine:
        if self._open is None:
            raise EngineError(f"{self.path} is not loaded; use its runner as a context manager")
        return self._open

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See the protocol."""
        return self._engine.infer(feeds, outputs=outputs)

    def loop(self, state: Mapping[str, str], shapes: Mapping[str, Shape], *, in_place: bool) -> PlanLoop:
        """See the protocol."""
        in_place = in_place and self._engine.in_place
        return PlanLoop(self._engine, state, shapes, in_place=in_place, cuda_graph=self._cuda_graph)


@contextmanager
def built(path: Path, feeds: Sequence[Feed], plugins: Path | None = None) -> Iterator[PlanRunner]:
    """Yield the entered runner of a plan that is built from an ONNX file for the shapes of ``feeds``, and then deleted.

    Raises:
        GraphOptError: the build, or running here, is refused.
    """
    names = [i.name for i in declared(ir.load(path)) if not all(isinstance(d, int) for d in i.shape)]
    shapes = dict.fromkeys(
        ",".join(f"{n}:{'x'.join(map(str, feed[n].shape))}" for n in names) for feed in feeds if names
    )
    with tempfile.TemporaryDirectory(prefix="graphopt-plan-") as folder:
        plan = Path(folder) / f"{path.stem}.plan"
        build(path, plan, BuildOptions(plugins=plugins, opt_shapes=tuple(shapes)))
        with PlanRunner(plan, plugins) as runner:
            yield runner
