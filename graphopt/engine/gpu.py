"""The GPUs of this machine, asked from the CUDA driver library itself; having none is a normal answer."""

__all__ = ["Driver", "Gpu", "query"]

import ctypes
from dataclasses import dataclass

_SUCCESS = 0
_NAME_BYTES = 256
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """One GPU: product name, compute capability such as ``9.0``, and memory in bytes."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The CUDA driver and its GPUs.

    Attributes:
        cuda_version: the newest CUDA version that the driver supports, such as ``13.0``; None without a driver.
        gpus: the visible GPUs.
        problem: why there are none, or None.
    """

    cuda_version: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None


def query(library: str = "libcuda.so.1") -> Driver:
    """Ask the driver ``library``; never raises."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Driver(None, (), "no NVIDIA driver is installed")
    value = ctypes.c_int()
    version = None
    if cuda.cuDriverGetVersion(ctypes.byref(value)) == _SUCCESS:
        version = f"{value.value // 1000}.{value.value % 1000 // 10}"
    if status := cuda.cuInit(0):
        return Driver(version, (), f"the NVIDIA driver finds no usable GPU (cuInit returned {status})")
    if status := cuda.cuDeviceGetCount(ctypes.byref(value)):
        return Driver(version, (), f"the NVIDIA driver cannot count GPUs (cuDeviceGetCount returned {status})")
    gpus = tuple(_describe(cuda, i) for i in range(value.value))
    return Driver(version, gpus, None if gpus else "the NVIDIA driver finds no GPU")


def _describe(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)
