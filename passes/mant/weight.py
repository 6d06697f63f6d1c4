"""One linear's weight -> what an M-ANT linear stores of it, a few rows at a time."""

__all__ = ["Calibration", "QuantizedWeight", "quantize_weight", "table_of"]

from dataclasses import dataclass

import numpy as np

from graphopt.core.canonical import LinearView
from graphopt.core.chunks import in_chunks
from graphopt.errors import ModelError
from graphopt.numerics.normalized_error import NormalizedError
from graphopt.numerics.packing import pack_int4, packed_bytes
from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mant.config import MantConfig
from graphopt.passes.mant.rounding import Codec, flattened, gptq, grouped
from graphopt.passes.mant.search import Choice, choose
from graphopt.passes.mant.types import INT4_TYPE, MANT, NF4, TypeTable

#: Weights that a thread quantizes at a time: what the search holds for each is 64 bytes and more.
_CHUNK = 1 << 18
#: The same with GPTQ, whose cost for a column of few rows is that of its calls.
_GPTQ_CHUNK = 1 << 22
#: Scales below half of the smallest float16 round to zero.
_LEAST = 2.0**-25


@dataclass(frozen=True)
class Calibration:
    """What is known of a linear's input, as far as the settings ask for it.

    Attributes:
        importance: (K,) float, mean square of each channel: the error is weighted with it.
        blocks: (G, g, g) float32, blocks of the second moment on its diagonal: the error is that of the output.
        moment: second moment for GPTQ.
    """

    importance: np.ndarray | None = None
    blocks: np.ndarray | None = None
    moment: SecondMoment | None = None


@dataclass(frozen=True)
class QuantizedWeight:
    """The stored form of a weight (N, K).

    Attributes:
        codes: (N, packed_bytes(K)) int8.
        ids: (G, N) uint8.
        scales: (G, N) float16.
        error: ||W - Ŵ|| / ||W||.
        output_error: the same of the outputs on the calibration data, ||X(W - Ŵ)ᵀ|| / ||XWᵀ||; None without GPTQ.
        vanished: groups of weights that are too small for any float16 scale and became zeros.
    """

    codes: np.ndarray
    ids: np.ndarray
    scales: np.ndarray
    error: float
    output_error: float | None
    vanished: int = 0


def table_of(config: MantConfig) -> TypeTable:
    """Return the types that the settings allow, as the chosen linear reads them."""
    table = {"mant": MANT, "nf4": NF4, "int4": MANT.only((INT4_TYPE,))}[config.types]
    return table.rounded() if config.one_pass else table


def quantize_weight(linear: LinearView, config: MantConfig, calibration: Calibration) -> QuantizedWeight:
    """Quantize the weight of ``linear``, which is read in chunks of rows.

    Raises:
        ModelError: the weight holds NaN, Inf or a value beyond what float16 scales reach, or nothing that they reach.
    """
    n, k = linear.shape
    table, group, moment = table_of(config), config.group, calibration.moment
    groups = -(-k // group)
    codes, ids = np.empty((n, packed_bytes(k)), np.int8), np.empty((groups, n), np.uint8)
    scales = np.empty((groups, n), np.float16)
    importance = None
    if calibration.importance is not None:
        importance = grouped(calibration.importance[None].astype(np.float32), group)[0]

    def quantized(rows: slice) -> tuple[np.ndarray, Choice, int, NormalizedError]:
        w = np.ascontiguousarray(linear.rows(rows.start, rows.stop)).astype(np.float32)
        _check(linear, w, table)
        in_groups = grouped(w, group)
        choice = choose(in_groups, table, clip=config.clip, importance=importance, blocks=calibration.blocks)
        codec = Codec(table, choice)
        error = NormalizedError()
        if moment is None:
            rounded = codec.encode(in_groups)
        else:
            flat, output_error = gptq(w, codec, group, moment)
            rounded = grouped(flat, group)
            error.add_output(moment.squared_error(w), output_error)
        error.add_weight(w, w - flattened(codec.decode(rounded), k))
        lost = np.count_nonzero((choice.scales == 0) & in_groups.any(axis=2))
        return pack_int4(flattened(rounded, k).view(np.int8)), choice, int(lost), error

    total, vanished = NormalizedError(), 0
    step = max(1, (_CHUNK if moment is None else _GPTQ_CHUNK) // (groups * group))
    for rows, (packed, choice, lost, error) in in_chunks(n, step, quantized):
        codes[rows] = packed
        ids[:, rows], scales[:, rows] = choice.ids.T, choice.scales.T
        vanished += lost
        total.add(error)
    if vanished and not scales.any():
        raise ModelError(
            f"weight '{linear.weight.name}' of '{linear.name}' holds nothing above {_LEAST:.0e}, the least that "
            "float16 scales reach; exclude this linear"
        )
    output_error = None if moment is None else total.of_output()
    return QuantizedWeight(codes, ids, scales, total.of_weight(), output_error, vanished)


def _check(linear: LinearView, w: np.ndarray, table: TypeTable) -> None:
    largest = float(np.max(np.abs(w), initial=0))
    where = f"weight '{linear.weight.name}' of '{linear.name}' holds"
    if not np.isfinite(largest):
        raise ModelError(f"{where} NaN or Inf; repair the model first")
    limit = float(np.finfo(np.float16).max) * float(np.nanmin(table.largest[list(table.ids)]))
    if largest > limit:
        raise ModelError(
            f"{where} {largest:.3g}, beyond the {limit:.3g} that float16 scales reach; exclude this linear"
        )
