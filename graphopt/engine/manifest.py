"""``model.plan.json``: what a plan is, what it was made of and what it needs to run."""

__all__ = ["FORMAT", "ExternalData", "Manifest", "Plugins", "Source", "Tensor", "path_for", "read"]

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from graphopt.engine.profiles import Profile, Range
from graphopt.errors import EngineError
from graphopt.ir import kv_cache, origin
from graphopt.ir.kv_cache import KvCache

#: Version of this file's format; a reader refuses another one.
FORMAT = 1


@dataclass(frozen=True)
class Tensor:
    """One input or output of the plan: dtype as TensorRT names it, -1 for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ExternalData:
    """One data file of the source model, relative to it, and its size in bytes."""

    location: str
    bytes: int


@dataclass(frozen=True)
class Source:
    """The ONNX file: its digest covers the graph and inline tensors, not the external data; ``metadata`` is what
    graphopt wrote into its ``metadata_props``."""

    path: str
    sha256: str
    external_data: tuple[ExternalData, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def properties(self) -> list[onnx.StringStringEntryProto]:
        """``metadata`` as a model has it."""
        return [onnx.StringStringEntryProto(key=key, value=value) for key, value in self.metadata.items()]


@dataclass(frozen=True)
class Plugins:
    """The plugin library that must be loaded to run the plan."""

    path: str
    sha256: str
    version: str | None
    build_info: str | None


@dataclass(frozen=True)
class Manifest:
    """Everything a plan file cannot say about itself without the right GPU.

    Attributes:
        format: `FORMAT`.
        graphopt: version that built the plan.
        flavour: ``rtx`` or ``tensorrt``.
        tensorrt: its version.
        targets: compute capabilities that the plan runs on.
        plan_sha256: digest of the plan.
        plan_bytes: size of the plan.
        source: the model.
        plugins: the plugin library, or None if the plan has no plugin layer.
        inputs: in network order.
        outputs: in network order.
        profiles: shape ranges; empty if every shape is static.
        plugin_layers: number of plugin layers.
        custom_ops: custom nodes of the model, by op.
        layers: layers of the parsed network, by type; the builder fuses them further.
        workspace_bytes: limit on scratch memory, or None.
        build_seconds: parse and build.
        peak_host_bytes: the most memory that the building process held.
    """

    format: int
    graphopt: str
    flavour: str
    tensorrt: str
    targets: tuple[str, ...]
    plan_sha256: str
    plan_bytes: int
    source: Source
    plugins: Plugins | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...]
    plugin_layers: int
    custom_ops: dict[str, int]
    layers: dict[str, int]
    workspace_bytes: int | None
    build_seconds: float
    peak_host_bytes: int

    @property
    def cache(self) -> KvCache | None:
        """The model's cache, if it is updated in place."""
        return kv_cache.read(self.source.properties)

    @property
    def scheme(self) -> str | None:
        """The recipe that the model's weights went through; None if they are untouched."""
        return origin.read(self.source.properties)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def path_for(plan: Path) -> Path:
    """Where the manifest of ``plan`` lies: ``model.plan`` -> ``model.plan.json``."""
    return plan.with_name(plan.name + ".json")


def read(plan: Path) -> Manifest:
    """Read the manifest of ``plan``.

    Raises:
        EngineError: missing, not JSON, of another format, or incomplete.
    """
    path = path_for(plan)
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise EngineError(
            f"{plan} has no manifest {path.name}; copy it beside the plan, or build the plan again"
        ) from e
    except (OSError, ValueError) as e:
        raise EngineError(f"cannot read manifest {path}: {e}; build the plan again") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise EngineError(f"manifest {path} has format {found}, this graphopt reads {FORMAT}; build the plan again")
    try:
        return _from_dict(data)
    except (KeyError, TypeError) as e:
        raise EngineError(f"manifest {path} is damaged ({e}); build the plan again") from e


def _from_dict(data: dict[str, Any]) -> Manifest:
    source, plugins = data["source"], data["plugins"]
    return Manifest(
        **{
            **data,
            "targets": tuple(data["targets"]),
            "source": Source(
                source["path"],
                source["sha256"],
                tuple(ExternalData(**e) for e in source["external_data"]),
                dict(source.get("metadata", {})),
            ),
            "plugins": None if plugins is None else Plugins(**plugins),
            "inputs": tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in data["inputs"]),
            "outputs": tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in data["outputs"]),
            "profiles": tuple(
                Profile(p["name"], {k: Range(**{b: tuple(s) for b, s in r.items()}) for k, r in p["ranges"].items()})
                for p in data["profiles"]
            ),
        }
    )
