"""ONNX file -> TensorRT plan with its manifest: parse, count plugin layers, choose profiles, build, write."""

__all__ = ["BuildOptions", "BuildResult", "build"]

import hashlib
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import graphopt
from graphopt.engine import manifest as manifests
from graphopt.engine import nvrtc, parse, plugins
from graphopt.engine.flavour import Flavour, select
from graphopt.engine.manifest import Manifest, Plugins, Tensor
from graphopt.engine.messages import Record, brief
from graphopt.engine.plugins import PluginLibrary
from graphopt.engine.profiles import Input, Limits, Profile, automatic, explicit
from graphopt.engine.progress import OnStep, Watch
from graphopt.engine.source import CustomOps, read
from graphopt.errors import EngineError, PluginError
from graphopt.ir import kv_cache
from graphopt.ir.files import replacing
from graphopt.ir.kv_cache import KvCache

_OPTIMIZATION_LEVELS = range(6)
_KIB = 1024


@dataclass(frozen=True)
class BuildOptions:
    """How to build a plan.

    Attributes:
        flavour: ``rtx`` or ``tensorrt``; None for the best one installed.
        plugins: the plugin library; None to look for it.
        min_shapes: smallest shapes, one string per profile, such as ``x:1x4``.
        opt_shapes: usual shapes.
        max_shapes: largest shapes; without any of the three, profiles follow from ``limits``.
        limits: sizes of automatic profiles.
        workspace_bytes: limit on scratch memory; None for TensorRT's.
        optimization_level: 0 (fast build) to 5 (fast plan); None for TensorRT's.
        timing_cache: file with kernel timings to reuse and extend; TensorRT-RTX has none and ignores it.
        compute_capabilities: GPUs to build for, such as ``8.9``; TensorRT-RTX only. Empty for its default.
        native_fallback: whether custom nodes without a plugin may run as their function bodies.
    """

    flavour: str | None = None
    plugins: Path | None = None
    min_shapes: tuple[str, ...] = ()
    opt_shapes: tuple[str, ...] = ()
    max_shapes: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    native_fallback: bool = False

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise EngineError(f"the workspace limit must be positive, not {self.workspace_bytes} bytes")
        if self.optimization_level not in (None, *_OPTIMIZATION_LEVELS):
            raise EngineError(f"the optimization level must be 0 to 5, not {self.optimization_level}")


@dataclass(frozen=True)
class BuildResult:
    """The files written, what the manifest says, and what did not stop the build but should be known."""

    plan: Path
    manifest_path: Path
    manifest: Manifest
    warnings: tuple[str, ...]


def build(
    model: Path, plan: Path, options: BuildOptions | None = None, *, on_step: OnStep | None = None
) -> BuildResult:
    """Build the plan of an ONNX file and write it, with its manifest beside it.

    Args:
        model: the .onnx file.
        plan: the file to write; replaced atomically if it exists. ``<plan>.json`` gets the manifest.
        options: how to build.
        on_step: told about progress.

    Raises:
        ModelError: the ONNX file or its external data cannot be used.
        PluginError: the model needs the plugin library, and it is missing or does not fit.
        EngineError: TensorRT is missing, or refuses the model or the profiles.
        OutputError: the plan cannot be written.
        KeyboardInterrupt: Ctrl-C; nothing half-written is left.
    """
    options = options or BuildOptions()
    source, custom_ops = read(model)
    flavour = select(options.flavour)
    manifest_path = manifests.path_for(plan)
    with replacing(plan, manifest_path) as (plan_file, manifest_file):
        # A folder that cannot be written shows before a long build, not after it.
        plan_file.touch()
        built = _build(flavour, model, custom_ops, options, on_step, kv_cache.read(source.properties))
        serialized = memoryview(built.serialized)
        plan_file.write_bytes(serialized)
        manifest = Manifest(
            format=manifests.FORMAT,
            graphopt=graphopt.__version__,
            flavour=flavour.name,
            tensorrt=flavour.version,
            targets=built.targets,
            plan_sha256=hashlib.sha256(serialized).hexdigest(),
            plan_bytes=serialized.nbytes,
            source=source,
            plugins=built.plugins,
            inputs=built.inputs,
            outputs=built.outputs,
            profiles=built.profiles,
            plugin_layers=built.plugin_layers,
            custom_ops=dict(sorted(custom_ops.counts.items())),
            layers=built.layers,
            workspace_bytes=options.workspace_bytes,
            build_seconds=round(built.seconds, 3),
            peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        )
        manifest_file.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n")
    return BuildResult(plan, manifest_path, manifest, built.warnings)


@dataclass(frozen=True)
class _Built:
    """A plan in memory, and what is known of it."""

    serialized: Any
    targets: tuple[str, ...]
    plugins: Plugins | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...]
    plugin_layers: int
    layers: dict[str, int]
    warnings: tuple[str, ...]
    seconds: float


def _build(
    flavour: Flavour,
    model: Path,
    custom_ops: CustomOps,
    options: BuildOptions,
    on_step: OnStep | None,
    cache: KvCache | None,
) -> _Built:
    started = time.monotonic()
    builder = flavour.builder()
    warnings: list[str] = []
    library = _load_plugins(flavour, options, warnings) if custom_ops.total else None
    missing = parse.missing_plugins(flavour, custom_ops, library, options.native_fallback)
    # The network holds weights that belong to the parser, which has to live as long.
    network, _parser, changes = parse.parse(flavour, builder, model, missing | custom_ops.plain)
    warnings.extend(changes)
    plugin_layers = parse.count_plugin_layers(flavour, network, custom_ops, missing)
    profiles = _profiles(flavour, network, options, coded=cache is not None and cache.kind != "static")
    config = builder.create_builder_config()
    targets = _configure(flavour, config, network, options)
    _add_profiles(flavour, builder, config, profiles)
    with flavour.messages.record() as record, _timing_cache(flavour, config, options.timing_cache, warnings):
        with Watch(flavour, on_step) as watch:
            watch.attach(config)
            serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise EngineError(f"{flavour} could not build {model}: {record.reason()}{_hint(record)}")
    return _Built(
        serialized=serialized,
        targets=targets,
        plugins=_plugins_entry(library) if library and plugin_layers else None,
        inputs=tuple(_tensor(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(i)) for i in range(network.num_outputs)),
        profiles=tuple(profiles),
        plugin_layers=plugin_layers,
        layers=_layer_types(network),
        warnings=(
            *warnings,
            *map(brief, dict.fromkeys(record.warnings)),
            *_kernel_warnings(library, plugin_layers, targets),
        ),
        seconds=time.monotonic() - started,
    )


def _kernel_warnings(library: PluginLibrary | None, plugin_layers: int, targets: tuple[str, ...]) -> Iterator[str]:
    if library and plugin_layers and (missing := plugins.uncovered(library, targets)):
        yield (
            f"the plugin library has no kernels for compute capability {', '.join(missing)}, "
            "where this plan would fail; compile it for them (see trt_plugins/README.md)"
        )


def _hint(record: Record) -> str:
    if any("violate shape constraints" in e for e in record.errors):
        return "; set --max-batch, --max-seq and --max-past (or the shapes) to what the model allows"
    return ""


def _load_plugins(flavour: Flavour, options: BuildOptions, warnings: list[str]) -> PluginLibrary | None:
    """Load the library; None where there is none and ``native_fallback`` makes that acceptable."""
    try:
        path = plugins.locate(options.plugins, flavour)
    except PluginError as e:
        if options.plugins is None and options.native_fallback:
            warnings.append(f"{e}; every custom op runs as its function body")
            return None
        raise
    nvrtc.offer()
    return plugins.load(path, flavour)


def _profiles(flavour: Flavour, network: Any, options: BuildOptions, *, coded: bool) -> list[Profile]:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    if values := next((t.name for t in tensors if t.is_shape_tensor), None):
        raise EngineError(
            f"input '{values}' gives sizes by its values, which a plan cannot take here; "
            "make it an initializer, or compute the sizes from the shapes of other inputs"
        )
    inputs = [
        Input(t.name, tuple(d if d >= 0 else t.get_dimension_name(axis) or "?" for axis, d in enumerate(t.shape)))
        for t in tensors
    ]
    if options.min_shapes or options.opt_shapes or options.max_shapes:
        return explicit(inputs, options.min_shapes, options.opt_shapes, options.max_shapes)
    return automatic(inputs, options.limits, split=flavour.kernels_per_profile, coded=coded)


def _add_profiles(flavour: Flavour, builder: Any, config: Any, profiles: list[Profile]) -> None:
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shapes in profile.ranges.items():
            made.set_shape(name, shapes.min, shapes.opt, shapes.max)
        with flavour.messages.record() as record:
            if config.add_optimization_profile(made) < 0:
                raise EngineError(f"{flavour} refused {profile.name}: {record.reason()}")


def _configure(flavour: Flavour, config: Any, network: Any, options: BuildOptions) -> tuple[str, ...]:
    """Set everything but profiles and the timing cache; return the GPU targets."""
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(flavour.trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    # Names of layers and their tensors stay in the plan, for inspection and per-layer timing.
    config.profiling_verbosity = flavour.trt.ProfilingVerbosity.DETAILED
    if not flavour.modern:
        # Several contexts of one engine may use one profile, as they always may in later releases.
        config.set_preview_feature(flavour.trt.PreviewFeature.PROFILE_SHARING_0806, True)
    flavour.follow_types(config, network)
    return flavour.set_targets(config, options.compute_capabilities)


@contextmanager
def _timing_cache(flavour: Flavour, config: Any, path: Path | None, warnings: list[str]) -> Iterator[None]:
    """Use the timings in ``path`` and save what the block adds to them, also when it fails."""
    if path is None:
        yield
        return
    if not flavour.has_timing_cache:
        warnings.append(f"{flavour} times no kernels while it builds; the timing cache {path} is not used")
        yield
        return
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as e:
        raise EngineError(f"cannot read timing cache {path}: {e.strerror or e}") from e
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        warnings.append(f"timing cache {path} is of another TensorRT or GPU; it is replaced by a new one")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    try:
        yield
    finally:
        with replacing(path) as (partial,):
            partial.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _plugins_entry(library: PluginLibrary) -> Plugins:
    return Plugins(str(library.path), library.sha256, library.version, library.build_info)


def _tensor(tensor: Any) -> Tensor:
    return Tensor(tensor.name, tensor.dtype.name, tuple(tensor.shape))


def _layer_types(network: Any) -> dict[str, int]:
    types = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    return dict(sorted(types.items()))
