"""GPUs that plans can be made for without having one."""

__all__ = ["DEVICES", "Device", "device"]

from dataclasses import dataclass

from graphopt.errors import BenchError, nearest


@dataclass(frozen=True)
class Device:
    """What plans and estimates depend on; numbers of NVIDIA's data sheets and programming guide.

    Attributes:
        multiprocessors: of the GPU.
        compute_capability: times ten: 90 is 9.0.
        megahertz: boost clock, so cycles of a microsecond.
        shared_bytes: shared memory that one block can have.
        bytes_per_us: of its memory.
    """

    multiprocessors: int
    compute_capability: int
    megahertz: int
    shared_bytes: int
    bytes_per_us: float


_KB = 1024
DEVICES = {
    "h100": Device(132, 90, 1755, 227 * _KB, 3.35e6),
    "h200": Device(132, 90, 1755, 227 * _KB, 4.8e6),
    "a100": Device(108, 80, 1410, 163 * _KB, 2.04e6),
    "l4": Device(58, 89, 2040, 99 * _KB, 0.3e6),
    "l40s": Device(142, 89, 2520, 99 * _KB, 0.864e6),
    "rtx4090": Device(128, 89, 2520, 99 * _KB, 1.008e6),
    "rtx5090": Device(170, 120, 2407, 99 * _KB, 1.792e6),
}


def device(name: str) -> Device:
    """Return the GPU of that name.

    Raises:
        BenchError: it is not in `DEVICES`.
    """
    if name not in DEVICES:
        raise BenchError(f"no GPU '{name}' to plan for{nearest(name, DEVICES)}")
    return DEVICES[name]
