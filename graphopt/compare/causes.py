"""Why a layer probably differs from its reference: what went in and out, looked at for known signs."""

__all__ = ["Evidence", "likely_cause"]

from dataclasses import dataclass

import numpy as np

from graphopt.compare.metrics import Difference

#: Largest finite float16.
_FLOAT16_MAX = 65504.0
#: A channel is an outlier beyond this multiple of the rms of the input.
_OUTLIER = 6.0
#: Relative error of one rounding to a type with 11 or 8 bits, and how often it may add up in a product.
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_ROUNDINGS = 8


@dataclass(frozen=True)
class Evidence:
    """What is known of a layer that differs, on one feed.

    Attributes:
        ours, reference: its output in both models, float32.
        x: its input in the reference, (..., K); None where that is unknown.
        dtype: type of its output in our model; None where the file does not say.
        outliers: channels of x that our model keeps out of quantization; None where it keeps none out by design.
        difference: over all feeds.
        weight_bits: bits per weight of our layer, where it has fewer than the reference's; None where it has not.
        int8_input: whether our layer reads x in 8 bits, and the reference's does not.
        same_op: the op that the layer is in both models, if it is a custom one.
        parted: the op that made our input, and how far that input is from the reference's, where the layer itself is
            the same in both.
    """

    ours: np.ndarray
    reference: np.ndarray
    x: np.ndarray | None
    dtype: str | None
    outliers: np.ndarray | None
    difference: Difference
    weight_bits: float | None = None
    int8_input: bool = False
    same_op: str | None = None
    parted: tuple[str, float] | None = None


def likely_cause(evidence: Evidence) -> str:
    """Return one clause; the first sign that is there, from the certain to the probable."""
    signs = (
        _shape, _poisoned_input, _float16_range, _overflow, _uncovered_outliers, _quantization, _rounding,
        _parted_input, _runner,
    )  # fmt: skip
    found = (sign(evidence) for sign in signs)
    return next((clause for clause in found if clause), "no known cause: its input, its weight or its kernel differs")


def _shape(e: Evidence) -> str | None:
    if e.ours.shape == e.reference.shape:
        return None
    return f"its shape is {list(e.ours.shape)}, not {list(e.reference.shape)}: the graphs differ before it"


def _poisoned_input(e: Evidence) -> str | None:
    if e.x is None or np.isfinite(e.x).all():
        return None
    return "its input already holds NaN or Inf in the reference: repair the model or the data first"


def _float16_range(e: Evidence) -> str | None:
    if e.dtype != "float16":
        return None
    for what, values in (("output", e.reference), ("input", e.x)):
        largest = 0.0 if values is None else float(np.abs(values).max(initial=0))
        if largest > _FLOAT16_MAX:
            return (
                f"its {what} reaches {largest:.4g} in the reference, beyond float16's {_FLOAT16_MAX:.0f}: "
                "leave the layer out, or use bfloat16"
            )
    return None


def _overflow(e: Evidence) -> str | None:
    bad = ~np.isfinite(e.ours) & np.isfinite(e.reference)
    if not bad.any():
        return None
    rows = bad.reshape(-1, bad.shape[-1]).any(axis=1)
    return (
        f"NaN or Inf in {int(rows.sum())} of {rows.size} rows, out of finite inputs: a scale overflowed, or a value "
        "before it did"
    )


def _uncovered_outliers(e: Evidence) -> str | None:
    if e.x is None or (e.outliers is None and not e.int8_input):
        return None
    x = e.x.reshape(-1, e.x.shape[-1])
    rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    peaks = np.abs(x).max(axis=0)
    uncovered = np.setdiff1d(np.flatnonzero(peaks > _OUTLIER * rms), () if e.outliers is None else e.outliers)
    if not uncovered.size:
        return None
    worst = uncovered[np.argmax(peaks[uncovered])]
    beyond = f"{uncovered.size} channel{'s' * (uncovered.size != 1)} of its input beyond {_OUTLIER:.0f} rms"
    peak = f"(channel {worst}: {peaks[worst] / rms:.1f} rms)"
    if e.outliers is None:
        return (
            f"{beyond} {peak} {'set' if uncovered.size != 1 else 'sets'} the scale of its 8-bit rows, and its scheme "
            "keeps none out: use one that does (mixq), or one that leaves inputs as they are"
        )
    return (
        f"{beyond} {'are' if uncovered.size != 1 else 'is'} outside its set of {e.outliers.size} outliers {peak}: "
        "calibrate on such data or raise the capacity"
    )


def _quantization(e: Evidence) -> str | None:
    error = f"(normalized error {e.difference.normalized:.3g})"
    if e.outliers is not None:
        return f"quantization alone, with no outlier outside its set {error}: give it more bits, or leave it out"
    if e.weight_bits is None:
        return None
    rows = " and its input 8" if e.int8_input else ""
    return (
        f"quantization: its weight has {e.weight_bits:.3g} bits{rows} {error}: give it more bits, calibrate with "
        "second moments, or leave it out"
    )


def _rounding(e: Evidence) -> str | None:
    step = _ROUNDING.get(e.dtype or "", 0.0)
    if e.difference.normalized > _ROUNDINGS * step:
        return None
    return f"rounding to {e.dtype} (normalized error {e.difference.normalized:.3g})"


def _parted_input(e: Evidence) -> str | None:
    if e.parted is None:
        return None
    op, error = e.parted
    return f"its input differs already (normalized error {error:.3g}); it comes from {op}"


def _runner(e: Evidence) -> str | None:
    if e.same_op is None:
        return None
    return f"it is a {e.same_op} in both models: its input, its operands or a runner's kernel differs"
