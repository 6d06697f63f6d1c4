"""What a plan was chosen from, and what it would cost without each optimization.

Times start from the library's estimates, which are fitted to measurements on an H100 with everything on. What switching
something off adds is counted from what the kernel would then do, in cycles of all multiprocessors:

- codebook cache off: an entry comes through the L1 cache instead of shared memory, where lanes have copies of their
  own: 32 look-ups of a warp take a cycle for each cache line they touch (expected from how often entries are named)
  instead of one for each 128 bytes;
- codebook-centric dataflow off: blocks of the kernels for few tokens do not share K (the library's own estimate for
  that; for those of many tokens it has none), and every block of 16 rows of the persistent kernel brings the
  codebooks for itself;
- fusion off: decoded weights go through shared memory to the lanes that multiply them, in and out 128 bytes a cycle.
"""

__all__ = ["ALL_ON", "Explanation", "Switches", "explain"]

import math
import re
from dataclasses import dataclass
from typing import Any

from graphopt.explain.devices import Device
from graphopt.explain.layers import VqLinear
from graphopt.explain.planner import Planner

_LANES, _SHARED_BYTES_PER_CYCLE = 32, 128
_GENERIC, _GENERIC_TOKENS = "generic", 8
_EXPANDED = "expanded"  # decodes all of W once, for any number of tokens
_FEW_TOKENS = 8  # of the smaller generated kernel
_ROWS_OF_BLOCK, _ROWS_OF_PERSISTENT = 128, 16
_LOAD_US = 0.7  # until the first bytes of a codebook arrive from L2
_LANE_ELEMENTS = 2  # consecutive weights that mma.sync wants in a lane
_MOST_SHUFFLES = 5  # VQ-LLM, section 5: above, shared memory rearranges faster than shuffles
_SUM_BYTES = 4  # of a partial sum


@dataclass(frozen=True)
class Switches:
    """Which optimizations are on."""

    cache: bool = True
    dataflow: bool = True
    fusion: bool = True

    def __str__(self) -> str:
        off = [name for name in ("cache", "dataflow", "fusion") if not getattr(self, name)]
        return "without " + ", ".join(off) if off else "all on"


ALL_ON = Switches()


@dataclass(frozen=True)
class Explanation:
    """Why a kernel runs for one linear and number of tokens.

    Attributes:
        m: tokens.
        kernel: that is chosen.
        reason: why it is that one, as a clause.
        split: blocks that share K.
        us: estimated time; None for generated kernels and the generic one, which no estimate knows.
        candidates: estimated time by kernel, with the switches as they are.
        traffic: bytes that multiprocessors read and write: codes, codebooks, x and y.
        memory_us: the least time for that, codebooks counted once: again they come from L2.
        paper_split: sqrt(codebook traffic / output size), of a launch that does not split K.
        shuffles: that would rearrange an entry for mma.sync; the kernels permute K instead, and need none.
        cache: entries in shared memory (n_shared), their bytes, copies and the share of look-ups that they serve; bytes
            that X may have there at a time, twice, and what is left of a block's; empty where entries stay in memory.
    """

    m: int
    kernel: str
    reason: str
    split: int
    us: float | None
    candidates: dict[str, float]
    traffic: dict[str, float]
    memory_us: float
    paper_split: float
    shuffles: int
    cache: dict[str, float]

    @property
    def paper_fusion(self) -> str:
        """Where VQ-LLM's rule by shuffles would rearrange entries."""
        return "registers" if self.shuffles <= _MOST_SHUFFLES else "shared memory"


def explain(layer: VqLinear, m: int, device: Device, planner: Planner, switches: Switches = ALL_ON) -> Explanation:
    """Return which kernel would run for ``m`` tokens, and why.

    Args:
        layer: the linear.
        m: tokens, at least 1.
        device: where it would run.
        planner: of the plugin library.
        switches: which optimizations to count in.
    """
    plan = planner.plan(layer, m, device)
    candidates = _candidates(plan, layer, m, device, planner, switches)
    kernel = min(candidates, key=lambda name: candidates[name]) if candidates else _GENERIC
    wanted = _wants_generated(plan, kernel, m) and layer.dtype != "float32" and not layer.format.lattice
    made, problem = planner.generated(layer, device) if wanted else ({}, "")
    reason = problem or _reason(layer, kernel)
    if made:
        kernel, reason = _generated(layer, m, made)
    split = int(plan["split"]) if switches.dataflow and kernel == plan["kernel"] else 1
    passes = _passes(kernel, m)
    element = 4 if layer.dtype == "float32" else 2
    loads = _loads(layer, kernel, passes, device if switches.dataflow else None)
    traffic = {
        "codes": float(layer.code_bytes * passes),
        "codebooks": loads * layer.format.book_bytes,
        "x": float(m * layer.k * element),
        "y": float(m * layer.n * element),
    }
    unsplit = _loads(layer, "few8", passes, None) * layer.format.book_bytes
    return Explanation(
        m=m,
        kernel=kernel,
        reason=reason,
        split=split,
        us=candidates.get(kernel),
        candidates=candidates,
        traffic=traffic,
        memory_us=(sum(traffic.values()) - traffic["codebooks"] + layer.book_bytes) / device.bytes_per_us,
        paper_split=math.sqrt(unsplit / (m * layer.n * _SUM_BYTES)),
        shuffles=layer.format.vector // _LANE_ELEMENTS,
        cache=_cache(made or plan, layer, kernel, device, switches),
    )


def _candidates(
    plan: dict[str, Any], layer: VqLinear, m: int, device: Device, planner: Planner, switches: Switches
) -> dict[str, float]:
    found: dict[str, float] = dict(plan["candidates"])
    if not switches.dataflow:
        alone = planner.plan(layer, m, device, clusters=False)["candidates"]
        found = {name: alone.get(name, us) for name, us in found.items()}
    if not (switches.cache and switches.dataflow):
        found.pop("table", None)  # which is a cache, of products instead of entries, for slices of K
    for name in found:
        passes = _passes(name, m)
        if not switches.cache:
            found[name] += passes * _cache_us(layer, device)
        if not switches.dataflow and name.startswith("rows"):
            found[name] += _reload_us(layer, passes, device)
        if not switches.fusion and name not in ("table", _EXPANDED):
            found[name] += passes * _staging_us(layer, device)
    return {name: round(us, 4) for name, us in found.items()}


def _reason(layer: VqLinear, kernel: str) -> str:
    if kernel != _GENERIC:
        return "its estimate is least"
    if layer.dtype == "float32":
        return "x is float32, and the other kernels take float16 and bfloat16, which --dtype float16 would show"
    return f"no other kernel is compiled for {layer.format} with these tiles and {layer.k} input channels"


def _wants_generated(plan: dict[str, Any], kernel: str, m: int) -> bool:
    """Whether a generated kernel is taken if there is one."""
    return kernel == _GENERIC or (kernel == _EXPANDED and plan["preset"] == "none" and m <= plan["most_generated"])


def _generated(layer: VqLinear, m: int, made: dict[str, Any]) -> tuple[str, str]:
    """Name and reason."""
    tokens = made["tokens"] if m > _FEW_TOKENS else _FEW_TOKENS
    which = int(tokens > _FEW_TOKENS)
    return f"generated{tokens}", (
        f"made for {layer.format} when an engine is built: {made['registers'][which]} registers, "
        f"{made['spilled_bytes'][which]} bytes spilled, {made['groups']} groups of warps share K"
    )


def _passes(kernel: str, m: int) -> int:
    """How often a kernel decodes all weights for ``m`` tokens, of which it takes the number that its name ends with."""
    if kernel == _EXPANDED:
        return 1
    number = re.search(r"\d+$", kernel)
    tokens = int(number.group()) if number else 1
    return math.ceil(m / (_GENERIC_TOKENS if kernel == _GENERIC else tokens))


def _cycles_per_us(device: Device) -> float:
    """Of all multiprocessors together."""
    return device.multiprocessors * device.megahertz


def _cache_us(layer: VqLinear, device: Device) -> float:
    fmt = layer.format
    warps = layer.n * -(-layer.k // fmt.vector) * fmt.residuals / _LANES
    shared = _LANES * fmt.entry_bytes / _SHARED_BYTES_PER_CYCLE
    return warps * max(0.0, layer.usage.lines(fmt.entry_bytes, _LANES) - shared) / _cycles_per_us(device)


def _reload_us(layer: VqLinear, passes: int, device: Device) -> float:
    more = max(0.0, -(-layer.n // _ROWS_OF_PERSISTENT) * passes / device.multiprocessors - 1)
    return more * (_LOAD_US + layer.format.book_bytes / (_SHARED_BYTES_PER_CYCLE * device.megahertz))


def _staging_us(layer: VqLinear, device: Device) -> float:
    both_ways = 2 * layer.n * layer.k * 2
    return both_ways / (_SHARED_BYTES_PER_CYCLE * _cycles_per_us(device))


def _loads(layer: VqLinear, kernel: str, passes: int, device: Device | None) -> float:
    """How often codebooks of one tile are brought to a multiprocessor. ``device``: None without the dataflow."""
    across = -(-layer.k // layer.format.tile_columns)
    rows = _ROWS_OF_PERSISTENT if kernel.startswith("rows") else _ROWS_OF_BLOCK
    blocks = -(-layer.n // rows) * passes
    if device is not None and kernel.startswith(("rows", "table", _EXPANDED)):
        blocks = min(blocks, device.multiprocessors)
    return float(across * blocks)


def _cache(plan: dict[str, Any], layer: VqLinear, kernel: str, device: Device, switches: Switches) -> dict[str, float]:
    generated = "n_shared" in plan
    if not switches.cache or not (generated or ("entries" in plan and kernel == plan["kernel"])):
        return {}
    fmt = layer.format
    entries = plan["n_shared"] if generated else int(plan["entries"]) // (1 if fmt.lattice else fmt.residuals)
    return {
        "n_shared": entries,
        "n_registers": 0,
        "served": layer.usage.hits(entries),
        "entry_bytes": fmt.entry_bytes,
        **{name: plan[name] for name in ("copies", "tables", "shared_bytes", "panel_bytes")},
        "left_bytes": device.shared_bytes - plan["shared_bytes"] - 2 * plan["panel_bytes"],
    }
