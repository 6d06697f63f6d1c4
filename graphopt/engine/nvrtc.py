"""NVRTC, which the plugin library generates kernels with when an engine is built; here only the wheels are known."""

__all__ = ["ENVIRONMENT", "find", "offer"]

import importlib.util
import os
import re
from pathlib import Path

#: Environment variable that names libnvrtc to the plugin library.
ENVIRONMENT = "GRAPHOPT_NVRTC"
#: Where the wheels of CUDA 13 and of CUDA 12 have it, below the package `nvidia`.
_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")


def find() -> Path | None:
    """Return libnvrtc of an installed wheel, nvidia-cuda-nvrtc or nvidia-cuda-nvrtc-cu12; None if there is none."""
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations if package else None
    for folder in _FOLDERS:
        for root in roots or ():
            for file in sorted((Path(root) / folder).glob("libnvrtc.so.*")):
                if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                    return file
    return None


def offer() -> None:
    """Name a wheel's libnvrtc to the plugin library of this process, unless the user has named one."""
    if not os.environ.get(ENVIRONMENT) and (found := find()):
        os.environ[ENVIRONMENT] = str(found)
