"""Result files: rows as performance results are kept in benchmarks/results/<gpu>/<suite>.json."""

__all__ = ["Row", "environment", "plain", "write"]

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from graphopt.bench.capi import Library, torch_with_cuda
from graphopt.bench.timer import Timing
from graphopt.results import provenance, write_rows


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        suite, case, scheme: what was measured.
        dtype: T, of activations and outliers.
        M, N, K, C: tokens, output channels, input channels, capacity of the outlier set; N is None without a product.
        us, spread: median in microseconds, interquartile range over it.
        floor_us: the least time that the device's ceilings allow.
        bytes, ops: that must be moved, and done.
        peers: what else did the same work, in microseconds.
        missing: why a peer has no time.
    """

    suite: str
    case: str
    scheme: str
    M: int
    N: int | None
    K: int
    C: int
    us: float
    spread: float
    floor_us: float
    bytes: int
    ops: int
    dtype: str = "float16"
    peers: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        timing: Timing,
        floor_us: float,
        *,
        suite: str,
        case: str,
        scheme: str = "mixq-w8a8",
        shape: tuple[int, int | None, int, int],
        moved: int,
        ops: int = 0,
        dtype: str = "float16",
        peers: Mapping[str, float] | None = None,
        missing: Mapping[str, str] | None = None,
    ) -> "Row":
        """Return a row of MixQ; ``shape`` is (M, N, K, C)."""
        rounded = {name: round(us, 2) for name, us in (peers or {}).items()}
        us, spread = round(timing.us, 2), round(timing.spread, 3)
        floor = round(floor_us, 2)
        return cls(suite, case, scheme, *shape, us, spread, floor, moved, ops, dtype, rounded, dict(missing or {}))

    @property
    def share(self) -> float:
        """Of the floor's rate that was reached."""
        return self.floor_us / self.us


def environment(library: Library) -> dict[str, object]:
    """Return what every row of a run shares: device, software, commit and date."""
    torch = torch_with_cuda()
    return {
        "gpu": torch.cuda.get_device_properties(0).name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "library": f"{library.version} {library.build_info}",
        **provenance(),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    except OSError:  # containers may have the driver without its tools
        return ""


def plain(rows: Sequence[Row], shared: Mapping[str, object]) -> list[dict[str, object]]:
    """Return ``rows``, each with the fields of ``shared``, as results have them."""
    return [{k: v for k, v in asdict(row).items() if v is not None} | dict(shared) for row in rows]


def write(path: Path, rows: Sequence[Row], shared: Mapping[str, object]) -> None:
    """Write ``rows``, each with the fields of ``shared``, as a JSON list.

    Raises:
        OutputError: it cannot be written; what the file held is still there.
    """
    write_rows(path, plain(rows, shared))
