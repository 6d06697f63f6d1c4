"""Which TensorRT: TensorRT-RTX, or TensorRT 8.6, 10 or 11; and one interface over what differs between them.

TensorRT is imported here and nowhere else, and only when a flavour is asked for.
"""

__all__ = ["NAMES", "Flavour", "Installed", "installed", "select"]

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from graphopt.engine import gpu, rtx
from graphopt.engine.messages import Messages
from graphopt.errors import EngineError, nearest

#: Flavour name -> Python module.
_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
NAMES = tuple(_MODULES)
_INSTALL = {
    "rtx": "pip install tensorrt-rtx",
    "tensorrt": "pip install tensorrt",
}
#: The first release with IPluginV3, IProgressMonitor, model-local functions in the parser and strongly typed networks.
_MODERN = 10
#: Compute capabilities that TensorRT-RTX runs on, as far as its enum names them; the newest stands for later ones too.
_RTX_DEFAULT_TARGETS = ("8.0", "8.6", "8.9", "12.0 and later")


@dataclass(frozen=True)
class Flavour:
    """One TensorRT, imported and ready.

    Attributes:
        name: ``rtx`` or ``tensorrt``.
        version: its version, such as ``1.7.1.116``.
        trt: the Python module.
        messages: what TensorRT logs.
        logger: the ILogger that feeds ``messages``.
    """

    name: str
    version: str
    trt: Any
    messages: Messages
    logger: Any

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.name == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.name == "rtx"

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.split(".")[0])

    @property
    def modern(self) -> bool:
        """Whether it has IPluginV3, strong types, progress and model-local functions: all but TensorRT 8."""
        return self.is_rtx or self.major >= _MODERN

    @property
    def library_name(self) -> str:
        """The library name that a plugin linked against this flavour would need."""
        return f"{rtx.SONAME}.{self.major}" if self.is_rtx else f"libnvinfer.so.{self.major}"

    @property
    def plugin_layer(self) -> Any:
        """The LayerType of a plugin of ours: IPluginV3, or IPluginV2DynamicExt in TensorRT 8."""
        return self.trt.LayerType.PLUGIN_V3 if self.modern else self.trt.LayerType.PLUGIN_V2

    @property
    def has_timing_cache(self) -> bool:
        """Whether a timing cache does anything: TensorRT-RTX times nothing while it builds."""
        return not self.is_rtx

    @property
    def kernels_per_profile(self) -> bool:
        """Whether the builder chooses kernels for each profile; TensorRT-RTX specializes them at run time.

        Splitting a model into profiles costs TensorRT-RTX build time, and a second copy of the weights of every matrix
        product whose shapes are static in one profile and dynamic in another (measured on 1.7.1).
        """
        return not self.is_rtx

    def builder(self) -> Any:
        """Return an IBuilder.

        Raises:
            EngineError: TensorRT needs a GPU that is not here.
        """
        try:
            builder = self.trt.Builder(self.logger)
        except (TypeError, RuntimeError):
            builder = None
        if builder is None:
            raise EngineError(
                f"{self} cannot start its builder, most often because there is no GPU; build on the GPU machine, "
                "or pass --flavour rtx, which builds anywhere"
            )
        return builder

    def network(self, builder: Any) -> Any:
        """Return an empty network whose types are those of the model: strongly typed wherever that exists."""
        flags = self.trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.modern else flags.EXPLICIT_BATCH
        return builder.create_network(1 << int(flag))

    def follow_types(self, config: Any, network: Any) -> None:
        """Make TensorRT 8, which has no strongly typed networks, use the types that the model has; no-op elsewhere.

        External tactic sources are switched off: so TensorRT 8 runs where cuBLAS and cuDNN are not installed, and hands
        no handles of theirs to plugins, which ours do not need.
        """
        if self.modern:
            return
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        used = {layer.get_output(i).dtype for layer in layers for i in range(layer.num_outputs)}
        used |= {network.get_input(i).dtype for i in range(network.num_inputs)}
        if self.trt.DataType.HALF in used:
            config.set_flag(self.trt.BuilderFlag.FP16)
        # Preferred and not obeyed: a layer without an implementation in the type that it has should not fail the build.
        config.set_flag(self.trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        config.set_tactic_sources(0)

    def set_targets(self, config: Any, compute_capabilities: tuple[str, ...]) -> tuple[str, ...]:
        """Choose the GPUs that the plan will run on and return them as text.

        Args:
            config: the IBuilderConfig.
            compute_capabilities: such as ``("8.6", "8.9")``; empty for the flavour's default.

        Raises:
            EngineError: a capability is unknown to this flavour, or the flavour builds for the GPU present only.
        """
        if not self.is_rtx:
            if compute_capabilities:
                raise EngineError(f"{self} builds for the GPU of this machine; drop --compute-capability")
            return tuple(g.compute_capability for g in gpu.query().gpus[:1])
        if not compute_capabilities:
            return _RTX_DEFAULT_TARGETS
        members = self.trt.ComputeCapability.__members__
        known = {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}
        if unknown := [c for c in compute_capabilities if c not in known]:
            raise EngineError(f"{self} cannot build for compute capability '{unknown[0]}'{nearest(unknown[0], known)}")
        config.num_compute_capabilities = len(compute_capabilities)
        for i, capability in enumerate(compute_capabilities):
            config.set_compute_capability(known[capability], i)
        return compute_capabilities


@dataclass(frozen=True)
class Installed:
    """A flavour whose Python module exists: usable if ``problem`` is None."""

    name: str
    version: str | None
    problem: str | None


@functools.cache
def installed() -> tuple[Installed, ...]:
    """Return what is installed, the unusable included."""
    found = []
    for name, module in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            continue
        try:
            found.append(Installed(name, _import(name).version, None))
        except EngineError as e:
            found.append(Installed(name, None, str(e)))
    return tuple(found)


def select(name: str | None = None) -> Flavour:
    """Return the flavour ``name``, or the best one for this machine.

    Where both are installed and work, that is TensorRT-RTX without a GPU, because only it builds there, and TensorRT
    with a GPU, because it runs on all of them.

    Args:
        name: ``rtx`` or ``tensorrt``; None to choose.

    Raises:
        EngineError: the flavour is unknown, not installed or broken.
    """
    if name is not None:
        if name not in _MODULES:
            raise EngineError(f"unknown TensorRT flavour '{name}'{nearest(name, NAMES)}")
        return _import(name)
    usable = [i.name for i in installed() if i.problem is None]
    if not usable:
        broken = "; ".join(i.problem for i in installed() if i.problem)
        raise EngineError(broken or f"no TensorRT is installed; get one with: {_INSTALL['rtx']}")
    preferred = "tensorrt" if gpu.query().gpus else "rtx"
    return _import(preferred if preferred in usable else usable[0])


@functools.cache
def _import(name: str) -> Flavour:
    module = _MODULES[name]
    if importlib.util.find_spec(module) is None:
        raise EngineError(f"the Python package {module} is not installed; get it with: {_INSTALL[name]}")
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as e:
        raise EngineError(
            f"the Python package {module} is installed but does not load: {e}; reinstall it with: {_INSTALL[name]}"
        ) from e
    messages = Messages()
    flavour = Flavour(name, str(trt.__version__), trt, messages, _logger(trt, messages))
    if flavour.is_rtx:
        rtx.make_loadable()
    return flavour


def _logger(trt: Any, messages: Messages) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.receive(severity.name, msg)

    return Logger()
