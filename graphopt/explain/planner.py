"""Plans that the plugin library would make, by its C API. Needs no GPU."""

__all__ = ["Planner"]

import ctypes
import json
from pathlib import Path
from typing import Any

from graphopt.errors import PluginError
from graphopt.explain.devices import Device
from graphopt.explain.layers import VqLinear
from graphopt.generated import generate

_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


class Planner:
    """The choices of libgraphopt_plugins.so.

    Args:
        path: the library file.

    Raises:
        PluginError: it cannot be loaded here, or has no plans.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            self._plan, _ = self._library.graphopt_vq_plan, self._library.graphopt_vq_generate
        except (OSError, AttributeError) as e:
            raise PluginError(f"{path} is no plugin library that can be asked for plans ({e}); build it again") from e
        long, number = ctypes.c_int64, ctypes.c_int32
        self._plan.argtypes = [number] + [long] * 3 + [number] * 3 + [long] * 2 + [number] * 3 + [ctypes.c_char_p, long]
        self._plan.restype = long

    def plan(self, layer: VqLinear, m: int, device: Device, *, clusters: bool = True) -> dict[str, Any]:
        """Return the plan of a linear for ``m`` tokens: kernel, split, us, candidates by kernel and the codebook cache.

        Args:
            layer: its sizes and format.
            m: tokens.
            device: to plan for.
            clusters: whether blocks may share K, where the device has clusters.
        """
        fmt = layer.format
        capability = device.compute_capability if clusters else 80
        sizes = m, layer.n, layer.k, fmt.vector, fmt.bits, fmt.residuals, fmt.tile_rows, fmt.tile_columns
        where = int(fmt.lattice), device.multiprocessors, capability
        text = ctypes.create_string_buffer(4096)
        self._plan(_DTYPES[layer.dtype], *sizes, *where, text, len(text))
        plan: dict[str, Any] = json.loads(text.value)
        return plan

    def generated(self, layer: VqLinear, device: Device) -> tuple[dict[str, Any], str]:
        """Generate the kernel that a linear without one of its own gets in an engine.

        Returns:
            Its numbers, as the library describes them; without any, why it has none.
        """
        fmt = layer.format
        sizes = layer.n, layer.k, fmt.vector, fmt.bits, fmt.residuals, fmt.tile_rows, fmt.tile_columns
        made, reason = generate(self._library, _DTYPES[layer.dtype], sizes, device.compute_capability)
        return (made["images"][0] if made else {}), reason
