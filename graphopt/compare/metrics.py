"""How far a value is from its reference, summed up over any number of arrays, and when that is too far."""

__all__ = ["METRICS", "Difference", "DifferenceMeter", "Tolerance"]

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: Name of a metric -> what it bounds.
METRICS = {
    "normalized": "||a - b|| / ||b|| <= rtol",
    "allclose": "|a - b| <= atol + rtol |b| for every element",
    "max-abs": "max |a - b| <= atol",
    "cosine": "1 - cos(a, b) <= rtol",
}


@dataclass(frozen=True)
class Difference:
    """Difference of one named value a from its reference b, over all samples.

    Attributes:
        name: of the value.
        max_abs: max |a - b|.
        rms: root mean square of a - b.
        normalized: ||a - b|| / ||b||; inf where b is zero and a is not.
        cosine: of the angle between a and b; 1 where both are zero.
        excess: max over elements of |a - b| - (atol + rtol |b|); positive means not close.
        reason: why the values cannot be compared at all (shape, NaN), or None.
        passed: whether the difference is within the tolerance.
    """

    name: str
    max_abs: float
    rms: float
    normalized: float
    cosine: float
    excess: float
    reason: str | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``; numbers that JSON lacks become None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal: a name from `METRICS` and its bounds."""

    metric: str = "normalized"
    rtol: float = 1e-3
    atol: float = 1e-5

    def accepts(self, *, normalized: float, excess: float, max_abs: float, cosine: float) -> bool:
        """Whether differences of this size pass."""
        return {
            "normalized": normalized <= self.rtol,
            "allclose": excess <= 0,
            "max-abs": max_abs <= self.atol,
            "cosine": 1 - cosine <= self.rtol,
        }[self.metric]


class DifferenceMeter:
    """Accumulates the difference of one value over samples; sums are float64.

    Args:
        name: of the value.
        tolerance: what counts as equal.
    """

    def __init__(self, name: str, tolerance: Tolerance) -> None:
        self._name, self._tolerance = name, tolerance
        self._error = self._a = self._b = self._dot = 0.0
        self._seen = self._numbers = self._count = 0
        self._max_abs, self._excess = 0.0, -math.inf
        self._reason: str | None = None

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add one pair: ``a`` to judge, ``b`` the reference; any numeric dtype, the same shape.

        Elements where both are NaN, or the same infinity, are equal and otherwise ignored.
        """
        if a.shape != b.shape:
            self._reason = f"shape {list(a.shape)} against {list(b.shape)}"
            return
        a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        self._numbers += int(a.size - np.isnan(a).sum())
        self._seen += a.size
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                self._reason = "NaN or Inf in one of the two only"
            a, b = a[finite], b[finite]
        if not a.size:
            return
        error = np.abs(a - b)
        self._count += a.size
        self._error += float(error @ error)
        self._a += float(a @ a)
        self._b += float(b @ b)
        self._dot += float(a @ b)
        self._max_abs = max(self._max_abs, float(error.max()))
        allowed = self._tolerance.atol + self._tolerance.rtol * np.abs(b)
        self._excess = max(self._excess, float((error - allowed).max()))

    def result(self) -> Difference:
        """Return the difference over everything seen; nothing seen counts as equal, nothing but NaN does not."""
        reason = self._reason or ("nothing but NaN in both" if self._seen and not self._numbers else None)
        zero = 0.0 if self._error == 0 else math.inf
        normalized = math.sqrt(self._error / self._b) if self._b else zero
        norm = math.sqrt(self._a) * math.sqrt(self._b)
        cosine = self._dot / norm if norm else float(self._a == self._b)
        sizes = {"normalized": normalized, "excess": self._excess, "max_abs": self._max_abs, "cosine": cosine}
        return Difference(
            name=self._name,
            rms=math.sqrt(self._error / self._count) if self._count else 0.0,
            reason=reason,
            passed=reason is None and self._tolerance.accepts(**sizes),
            **sizes,
        )
