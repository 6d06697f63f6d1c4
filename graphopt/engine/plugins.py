"""Find, check and load the plugin library: ``libgraphopt_plugins.so``, or ``libgraphopt_plugins_trt8.so``."""

__all__ = [
    "ENVIRONMENT",
    "LIBRARY",
    "LIBRARY_TENSORRT8",
    "NAMESPACE",
    "PluginLibrary",
    "check",
    "load",
    "locate",
    "uncovered",
]

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphopt
from graphopt.engine import elf
from graphopt.engine.digest import sha256
from graphopt.engine.flavour import Flavour
from graphopt.errors import PluginError

LIBRARY = "libgraphopt_plugins.so"
#: Where trt_plugins/README.md builds, below build/. Other folders there hold builds for some purpose of their own.
_BUILD_FOLDER = "plugins"
#: The one for TensorRT 8.
LIBRARY_TENSORRT8 = "libgraphopt_plugins_trt8.so"
#: Environment variable that names the library.
ENVIRONMENT = "GRAPHOPT_PLUGIN_LIBRARY"
#: Namespace of our creators, and domain of our ops.
NAMESPACE = "graphopt"
#: Exported by a library for IPluginV3, and by one for TensorRT 8.6.
_MODERN_ENTRY, _TENSORRT8_ENTRY = "getCreators", "getPluginCreators"
_VERSION_FUNCTION, _BUILD_FUNCTION = "graphopt_plugins_version", "graphopt_plugins_build_info"
_LOG_FUNCTION = "graphopt_plugins_set_log"
#: Names of ILogger.Severity, by number.
_SEVERITIES = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"
_Receiver = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p)


@dataclass(frozen=True)
class PluginLibrary:
    """A loaded plugin library.

    Attributes:
        path: absolute, links resolved.
        sha256: hex digest of the file.
        version: what it says its version is; None if it does not say.
        build_info: how it was compiled (GPU architectures, CUDA, TensorRT headers); None if it does not say.
        creators: names of the plugins it provides, sorted.
    """

    path: Path
    sha256: str
    version: str | None
    build_info: str | None
    creators: tuple[str, ...]


#: What this process has loaded: TensorRT's registry refuses a second registration of the same plugins.
_loaded: dict[str, PluginLibrary] = {}
#: What libraries call as long as the process lives.
_receivers: list[Any] = []


def locate(explicit: str | os.PathLike[str] | None = None, flavour: Flavour | None = None) -> Path:
    """Return the path of the library: ``explicit``, else $GRAPHOPT_PLUGIN_LIBRARY, else packaged, else built here.

    Built here is the one in build/plugins, or, where there is none, the newest below build.

    Args:
        explicit: a path that the user gave.
        flavour: the TensorRT to find one for; None for TensorRT 10, 11 or RTX.

    Raises:
        PluginError: there is none.
    """
    for source, named in (("", explicit), (f" (from ${ENVIRONMENT})", os.environ.get(ENVIRONMENT))):
        if named:
            path = Path(named)
            if not path.is_file():
                raise PluginError(f"plugin library {path}{source} does not exist; build it, or correct the path")
            return path.resolve()
    name = LIBRARY if flavour is None or flavour.modern else LIBRARY_TENSORRT8
    package = Path(graphopt.__file__).parent
    packaged, build = package / "lib" / name, package.parent / "build"
    if packaged.is_file():
        return packaged.resolve()
    documented = build / _BUILD_FOLDER / name
    if documented.is_file():
        return documented.resolve()
    built = [(path.stat().st_mtime, path) for path in build.rglob(name)]
    if built:
        return max(built)[1].resolve()
    raise PluginError(
        f"the plugin library {name} was not found in {packaged.parent} or {build}; build it with cmake "
        f"(see trt_plugins/README.md), or name it with --plugins or ${ENVIRONMENT}"
    )


def check(path: Path, flavour: Flavour) -> None:
    """Refuse a file that ``flavour`` cannot load as a plugin library, without running any code of it.

    Raises:
        PluginError: not a shared library, for another machine, without plugins, or built for another TensorRT.
    """
    try:
        library = elf.read(path)
    except elf.NotElfError as e:
        raise PluginError(f"plugin library {e}; build it again") from e
    except OSError as e:
        raise PluginError(f"cannot read plugin library {path}: {e.strerror or e}") from e
    machine = os.uname().machine
    if library.machine != machine:
        raise PluginError(f"plugin library {path} is built for {library.machine}, this machine is {machine}")
    entry, other = (_MODERN_ENTRY, _TENSORRT8_ENTRY) if flavour.modern else (_TENSORRT8_ENTRY, _MODERN_ENTRY)
    if entry not in library.exports:
        if other in library.exports:
            built_for = "TensorRT 8" if flavour.modern else "TensorRT 10 or later"
            raise PluginError(
                f"plugin library {path} is built for {built_for}, not for {flavour}; build it for this one"
            )
        if LIBRARY in library.needed:
            raise PluginError(f"{path} registers itself when a server opens it; give {path.with_name(LIBRARY)} instead")
        raise PluginError(f"{path} is not a TensorRT plugin library: it does not export {entry}")
    for needed in library.needed:
        if needed.startswith(("libnvinfer.so.", "libtensorrt_rtx.so.")) and needed != flavour.library_name:
            raise PluginError(
                f"plugin library {path} needs {needed}, so it is built for another TensorRT than {flavour} "
                f"({flavour.library_name}); build it again"
            )


def load(path: Path, flavour: Flavour) -> PluginLibrary:
    """Load ``path`` into TensorRT's global plugin registry, once per process.

    Raises:
        PluginError: as `check`; or TensorRT refused the library, or another one is loaded already.
    """
    check(path, flavour)
    digest = sha256(path)
    if (loaded := _loaded.get(flavour.name)) is not None:
        if loaded.sha256 != digest:
            raise PluginError(f"plugin library {loaded.path} is loaded already; use a new process to load {path}")
        return loaded
    try:
        # TensorRT binds symbols lazily, and a missing one would end the process at its first use.
        ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as e:
        raise PluginError(f"plugin library cannot be loaded: {e}; build it again for this machine") from e
    registry = flavour.trt.get_plugin_registry()
    with flavour.messages.record() as record:
        if flavour.modern:
            # The registry reports to the logger of the first builder or runtime, so there has to be one.
            runtime = flavour.trt.Runtime(flavour.logger)
            accepted = registry.load_library(str(path)) is not None
            del runtime
        else:
            accepted = bool(ctypes.CDLL(str(path)).graphopt_register_plugins())
    if not accepted:
        raise PluginError(f"{flavour} refused plugin library {path}: {record.reason()}")
    known = registry.all_creators if flavour.modern else registry.plugin_creator_list
    creators = sorted(c.name for c in known if c.plugin_namespace == NAMESPACE)
    if not creators:
        raise PluginError(f"plugin library {path} has no plugin in namespace '{NAMESPACE}'; is it another project's?")
    _listen(path, flavour)
    library = PluginLibrary(path, digest, _text(path, _VERSION_FUNCTION), _text(path, _BUILD_FUNCTION), tuple(creators))
    _loaded[flavour.name] = library
    return library


def uncovered(library: PluginLibrary, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of ``targets`` for which the library has no kernels; none if it does not say what it has.

    Machine code for compute capability a.b runs on a.c with c >= b; architecture-specific code (``90a``) on a.b alone;
    PTX on everything from its own capability on, where the driver compiles it.

    >>> some = PluginLibrary(Path("x.so"), "", None, "cuda=13.0 archs=80,90a ptx=none", ())
    >>> uncovered(some, ("7.5", "8.6", "9.0", "12.0 and later"))
    ('7.5', '12.0 and later')
    >>> some = PluginLibrary(Path("x.so"), "", None, "cuda=13.0 archs=80,90a ptx=80", ())
    >>> uncovered(some, ("7.5", "8.6", "9.0", "12.0 and later"))
    ('7.5',)
    """
    listed = re.search(r"\barchs=([\w,-]+)(?: ptx=(\d+)(\d))?", library.build_info or "")
    if listed is None:
        return ()
    found = [re.fullmatch(r"(\d+)(\d)([a-z]?)(-\w+)?", arch) for arch in listed.group(1).split(",")]
    archs = [(int(m.group(1)), int(m.group(2)), bool(m.group(3))) for m in found if m]
    ptx = (int(listed.group(2)), int(listed.group(3))) if listed.group(2) else None

    def covered(target: str) -> bool:
        major, minor = map(int, target.split()[0].split("."))
        compiled = ptx is not None and (major, minor) >= ptx
        return compiled or any(major == a and (minor == b if exact else minor >= b) for a, b, exact in archs)

    return tuple(t for t in targets if not covered(t))


def _listen(path: Path, flavour: Flavour) -> None:
    """Receive what plugins say where TensorRT gives them no logger, as TensorRT-RTX does not."""
    call = getattr(ctypes.CDLL(str(path)), _LOG_FUNCTION, None)
    if call is None:
        return

    def receive(severity: int, message: bytes) -> None:
        flavour.messages.receive(_SEVERITIES[severity], message.decode(errors="replace"))

    _receivers.append(_Receiver(receive))
    call(_receivers[-1])


def _text(path: Path, function: str) -> str | None:
    """Call ``const char* function(void)`` of the library, if it has one."""
    call = getattr(ctypes.CDLL(str(path)), function, None)
    if call is None:
        return None
    call.restype = ctypes.c_char_p
    value = call()
    return value.decode(errors="replace") if value else None
