"""What is installed, what works, and what to do about the rest."""

__all__ = ["Check", "Diagnosis", "Status", "examine"]

import enum
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt.engine import gpu, plugins, rtx
from graphopt.engine.flavour import Flavour, installed, select
from graphopt.errors import GraphOptError

_PACKAGES = ("numpy", "onnx", "onnx-graphsurgeon")
_OPTIONAL_PACKAGES = {
    "onnxruntime": "calibration and accuracy checks need it: pip install onnxruntime",
    "gguf": "building models from GGUF weights needs it: pip install gguf",
    "tokenizers": "perplexity on text needs it: pip install tokenizers",
}
_OLDEST_PYTHON = (3, 10)
#: Where TensorRT's headers lie, besides $TENSORRT_INCLUDE_DIR and $TensorRT_ROOT.
_HEADER_FOLDERS = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/include",
)
_NVCC_TIMEOUT_S = 20


class Status(str, enum.Enum):
    """Outcome of a check; only ``ERROR`` makes graphopt unable to build engines here."""

    OK = "ok"
    NOTE = "note"
    ERROR = "error"


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis: what was looked at, what was found, and what to do if that is not enough."""

    name: str
    status: Status
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All checks, in reading order."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that the flavour in question needs is broken."""
        return all(c.status is not Status.ERROR for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"healthy": self.healthy, "checks": [{**asdict(c), "status": c.status.value} for c in self.checks]}


def examine(
    flavour: str | None = None, plugin_library: Path | None = None, ops: Collection[str] = frozenset()
) -> Diagnosis:
    """Check everything that building and running engines takes; loads TensorRT and the plugin library.

    Args:
        flavour: ``rtx`` or ``tensorrt``, which must then work; None for the best one installed.
        plugin_library: the library to check; None to look for it.
        ops: names of the plugins that the library must have: one built from older sources lacks some.
    """
    checks = [*_python(), *_packages(), *_flavours(flavour), *_gpus()]
    try:
        chosen = select(flavour)
    except GraphOptError as e:
        checks.append(Check("TensorRT in use", Status.ERROR, "none", str(e)))
        return Diagnosis((*checks, *_toolchain()))
    checks.append(Check("TensorRT in use", Status.OK, str(chosen)))
    return Diagnosis((*checks, *_rtx_name(chosen), *_plugin_library(chosen, plugin_library, ops), *_toolchain()))


def _python() -> Iterator[Check]:
    old = sys.version_info[:2] < _OLDEST_PYTHON
    advice = f"use Python {'.'.join(map(str, _OLDEST_PYTHON))} or newer" if old else None
    found = f"{platform.python_version()} on {platform.machine()}"
    yield Check("Python", Status.ERROR if old else Status.OK, found, advice)


def _packages() -> Iterator[Check]:
    for name in (*_PACKAGES, *_OPTIONAL_PACKAGES):
        try:
            yield Check(name, Status.OK, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            optional = name in _OPTIONAL_PACKAGES
            advice = _OPTIONAL_PACKAGES.get(name, f"pip install {name}")
            yield Check(name, Status.NOTE if optional else Status.ERROR, "not installed", advice)


def _flavours(wanted: str | None) -> Iterator[Check]:
    for entry in installed():
        if entry.problem is None:
            yield Check(f"flavour {entry.name}", Status.OK, str(entry.version))
        else:
            status = Status.ERROR if entry.name == wanted else Status.NOTE
            yield Check(f"flavour {entry.name}", status, "broken", entry.problem)


def _gpus() -> Iterator[Check]:
    driver = gpu.query()
    if driver.problem is not None:
        advice = "none is needed to optimize, or to build engines with TensorRT-RTX; running them takes one"
        yield Check("GPU", Status.NOTE, driver.problem, advice)
    for device in driver.gpus:
        size = f"{device.memory_bytes / 2**30:.0f} GiB"
        found = f"{device.name}, compute capability {device.compute_capability}, {size}, driver for CUDA "
        yield Check("GPU", Status.OK, found + str(driver.cuda_version))


def _rtx_name(flavour: Flavour) -> Iterator[Check]:
    if not flavour.is_rtx:
        return
    # Choosing the flavour has made the name loadable, or failed and said how to do it by hand.
    yield Check(rtx.SONAME, Status.OK, f"answered by {rtx.loaded_library()}, as the parser wants for plugins")


def _plugin_library(flavour: Flavour, explicit: Path | None, ops: Collection[str]) -> Iterator[Check]:
    try:
        library = plugins.load(plugins.locate(explicit, flavour), flavour)
    except GraphOptError as e:
        yield Check("plugin library", Status.ERROR, "not usable", str(e))
        return
    yield Check("plugin library", Status.OK, f"{library.path}, version {library.version or 'unknown'}")
    missing = sorted(set(ops) - set(library.creators))
    advice = f"it lacks {', '.join(missing)}: it was built from other sources; build it again" if missing else None
    found = f"{len(library.creators)}: {', '.join(library.creators)}"
    yield Check("plugins", Status.ERROR if missing else Status.OK, found, advice)
    if library.build_info:
        yield Check("plugin build", Status.OK, library.build_info)


def _toolchain() -> Iterator[Check]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        yield Check(
            "nvcc", Status.NOTE, "not found", "only compiling the plugin library needs it: see trt_plugins/README.md"
        )
    else:
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=_NVCC_TIMEOUT_S).stdout
        release = re.search(r"release ([\d.]+)", output)
        yield Check("nvcc", Status.OK, f"{nvcc}, CUDA {release.group(1) if release else 'unknown'}")
    folder = _header_folder()
    if folder is None:
        advice = "only compiling the plugin library needs them, and its build fetches a copy"
        yield Check("TensorRT headers", Status.NOTE, "not installed", advice)
    else:
        yield Check("TensorRT headers", Status.OK, f"{folder}, version {_header_version(folder)}")


def _header_folder() -> Path | None:
    folders = []
    if explicit := os.environ.get("TENSORRT_INCLUDE_DIR"):
        folders.append(Path(explicit))
    if root := os.environ.get("TensorRT_ROOT"):  # noqa: SIM112 (the name that CMake gives it)
        folders.append(Path(root) / "include")
    folders += map(Path, _HEADER_FOLDERS)
    return next((f for f in folders if (f / "NvInferVersion.h").is_file()), None)


def _header_version(folder: Path) -> str:
    text = (folder / "NvInferVersion.h").read_text(errors="replace")
    numbers = [
        re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? (\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(n.group(1) for n in numbers if n) or "unknown"
