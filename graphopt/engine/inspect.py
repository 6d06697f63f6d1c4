"""Look at a plan: what its manifest says, whether plan, TensorRT and plugin library still fit it, and its layers."""

__all__ = ["Layer", "PlanReport", "inspect_plan", "require_usable"]

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt.engine import gpu, plugins
from graphopt.engine import manifest as manifests
from graphopt.engine.digest import sha256
from graphopt.engine.flavour import Flavour, installed, select
from graphopt.engine.layers import layer_entries
from graphopt.engine.manifest import Manifest
from graphopt.errors import EngineError, GraphOptError


@dataclass(frozen=True)
class Layer:
    """One layer of the built engine, after TensorRT's fusions."""

    name: str
    type: str


@dataclass(frozen=True)
class PlanReport:
    """What is known of a plan file.

    Attributes:
        plan: the file.
        manifest: from beside it.
        problems: one sentence each for what keeps it from running here; empty if nothing does.
        layers: layers of the engine, or None where they cannot be listed.
        layers_missing: why not, or None.
    """

    plan: Path
    manifest: Manifest
    problems: tuple[str, ...]
    layers: tuple[Layer, ...] | None
    layers_missing: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "plan": str(self.plan)}


def inspect_plan(plan: Path, plugin_library: Path | None = None) -> PlanReport:
    """Read a plan's manifest, check that everything it names is still the same, and list its layers if a GPU is here.

    Args:
        plan: the plan file, with its manifest beside it.
        plugin_library: the library to run it with; None to look for it.

    Raises:
        EngineError: the plan or its manifest is missing or unreadable.
    """
    manifest, problems = _examine(plan, plugin_library)
    if problems:
        return PlanReport(plan, manifest, problems, None, "the plan cannot be used as it is")
    layers, missing = _list_layers(plan, manifest, plugin_library)
    return PlanReport(plan, manifest, (), layers, missing)


def require_usable(plan: Path, plugin_library: Path | None = None) -> Manifest:
    """Return the manifest of a plan that can run here as far as files tell.

    Raises:
        EngineError: with the first problem of `inspect_plan`.
    """
    manifest, problems = _examine(plan, plugin_library)
    if problems:
        raise EngineError(problems[0])
    return manifest


def _examine(plan: Path, plugin_library: Path | None) -> tuple[Manifest, tuple[str, ...]]:
    if not plan.is_file():
        raise EngineError(f"{plan} does not exist or is not a file; give the path of a .plan file")
    manifest = manifests.read(plan)
    problems = [*_plan_problems(plan, manifest), *_flavour_problems(manifest), *_gpu_problems(manifest)]
    if not problems:
        problems += _plugin_problems(manifest, plugin_library)
    return manifest, tuple(problems)


def _plan_problems(plan: Path, manifest: Manifest) -> list[str]:
    size = plan.stat().st_size
    if size != manifest.plan_bytes:
        return [
            f"{plan} has {size} bytes, its manifest says {manifest.plan_bytes}: truncated or replaced; build it again"
        ]
    if sha256(plan) != manifest.plan_sha256:
        return [f"{plan} is not the file its manifest describes: edited or replaced; build it again"]
    return []


def _flavour_problems(manifest: Manifest) -> list[str]:
    found = next((i for i in installed() if i.name == manifest.flavour), None)
    wanted = f"{'TensorRT-RTX' if manifest.flavour == 'rtx' else 'TensorRT'} {manifest.tensorrt}"
    if found is None:
        return [f"the plan needs {wanted}, which is not installed"]
    if found.problem is not None:
        return [found.problem]
    if found.version != manifest.tensorrt:
        return [f"the plan was built by {wanted}, installed is {found.version}; build it again or install that version"]
    return []


def _gpu_problems(manifest: Manifest) -> list[str]:
    """Plans of TensorRT hold the kernels of one GPU; those of TensorRT-RTX say themselves where they do not run."""
    here = gpu.query().gpus[:1]
    if manifest.flavour != "tensorrt" or not here or here[0].compute_capability in manifest.targets:
        return []
    return [
        f"the plan was built for compute capability {', '.join(manifest.targets)}, the GPU here ({here[0].name}) has "
        f"{here[0].compute_capability}; build it again on this machine"
    ]


def _plugin_problems(manifest: Manifest, explicit: Path | None) -> list[str]:
    wanted = manifest.plugins
    if wanted is None:
        return []
    try:
        path = plugins.locate(explicit, select(manifest.flavour))
    except GraphOptError as e:
        return [str(e)]
    if sha256(path) != wanted.sha256:
        return [
            f"the plan was built with another plugin library than {path} (version {wanted.version}, {wanted.path}); "
            "build the plan again, or give that library"
        ]
    return []


def _list_layers(
    plan: Path, manifest: Manifest, plugin_library: Path | None
) -> tuple[tuple[Layer, ...] | None, str | None]:
    driver = gpu.query()
    if not driver.gpus:
        return None, f"layers of the engine can be listed on its GPU only: {driver.problem}"
    flavour = select(manifest.flavour)
    if manifest.plugins is not None:
        plugins.load(plugins.locate(plugin_library, flavour), flavour)
    with flavour.messages.record() as record:
        runtime = flavour.trt.Runtime(flavour.logger)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        return None, f"{flavour} cannot load the plan here: {record.reason()}"
    return _layers_of(flavour, engine), None


def _layers_of(flavour: Flavour, engine: Any) -> tuple[Layer, ...]:
    return tuple(Layer(e.get("Name", ""), e.get("LayerType", "")) for e in layer_entries(flavour, engine))
