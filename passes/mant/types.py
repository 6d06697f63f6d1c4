"""The numeric types of M-ANT (HPCA'25, section 4): sixteen 4-bit grids, one of which each group of weights chooses.

A code is a sign, bit 3, and a magnitude index i, bits 0 to 2. The types 0 to 14 are mathematically adaptive,

    value = ± (a·i + 2^i),   i = 0..7,   a in 0, 5, 10, 17, 20, 30, ..., 120

(a = 0 is power of two, 17 is close to E2M1, 120 close to evenly spaced), and type 15 is plain INT4, ± i. There is no
zero but in INT4: the smallest magnitude is 1, at most 1/128 of the largest.

All of it is stored divided by the power of two above the largest magnitude, so that a float16 scale is one to two times
the group's largest weight and neither overflows nor loses bits as a subnormal number, whatever a is; the integers, at
most 968, stay exact in float16. NF4 (Dettmers et al., 2023, appendix E) is a table of the same form with one type, with
the half that holds its zero as the negative one.

For int8 tensor cores a·i + 2^i is rewritten, exactly:

    a·i + 2^i = (a + 1)·i + (2^i - i),    i in 0..7,   2^i - i in 1, 1, 2, 5, 12, 27, 58, 121

Both tables fit int8, which 2^7 does not; INT4 is the first one alone.
"""

__all__ = [
    "CODES",
    "INT4_TYPE",
    "KV_STEPS",
    "MANT",
    "MANT_KV",
    "NF4",
    "STEPS",
    "TYPES",
    "TypeTable",
    "split_factors",
    "split_tables",
]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The coefficient a of each adaptive type, by type id.
STEPS = (0, 5, 10, 17, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
#: The same for the key-value cache.
KV_STEPS = (0, *STEPS[2:5], 25, *STEPS[5:])
#: Number of type ids, and of codes of a type.
TYPES = CODES = 16
#: Type id of plain INT4.
INT4_TYPE = len(STEPS)

_MAGNITUDES = CODES // 2
_INDEX = np.arange(_MAGNITUDES)
_NF4_POSITIVE = (
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_NF4_NEGATIVE = (
    0.0,
    0.09105003625154495,
    0.18477343022823334,
    0.28444138169288635,
    0.39491748809814453,
    0.5250730514526367,
    0.6961928009986877,
    1.0,
)


@dataclass(frozen=True, eq=False)
class TypeTable:
    """What the codes of up to sixteen types stand for.

    Attributes:
        values: (16, 16) float32 by type id and code, exact in float16, magnitudes at most 1; NaN in unused rows, so
            that a damaged type id spoils its output visibly instead of silently.
        ids: the types in use.
    """

    values: np.ndarray
    ids: tuple[int, ...]

    @cached_property
    def largest(self) -> np.ndarray:
        """(16,) float32: the largest magnitude that both signs have."""
        top = np.minimum(self.values[:, _MAGNITUDES - 1], -self.values[:, CODES - 1])
        return np.asarray(top, np.float32)

    @cached_property
    def ascending(self) -> np.ndarray:
        """(16, 16) int8: codes of each type by ascending value."""
        return np.argsort(self.values, axis=1, kind="stable").astype(np.int8)

    @cached_property
    def boundaries(self) -> np.ndarray:
        """(16, 15) float32: halfway between neighbouring values of each type, ascending."""
        ordered = np.take_along_axis(self.values, self.ascending.astype(np.intp), axis=1)
        return np.asarray((ordered[:, 1:] + ordered[:, :-1]) / 2, np.float32)

    @cached_property
    def symmetric(self) -> bool:
        """Whether negative codes mirror the positive ones in every type."""
        used = self.values[list(self.ids)]
        return bool(np.array_equal(used[:, _MAGNITUDES:], -used[:, :_MAGNITUDES]))

    def only(self, ids: tuple[int, ...]) -> "TypeTable":
        """Return the table with only the types ``ids`` in use; their values stay."""
        return TypeTable(self.values, ids)

    def rounded(self) -> "TypeTable":
        """Return the table with every type rounded to int8: ±127 for the largest magnitude, all divided by 128."""
        with np.errstate(invalid="ignore"):
            codes = np.rint(self.values / self.largest[:, None] * 127)
        return TypeTable((np.clip(codes, -127, 127) / 128).astype(np.float32), self.ids)

    def integers(self) -> np.ndarray:
        """Return the values of a `rounded` table times 128, (16, 16) int8; 0 in unused rows."""
        return np.nan_to_num(self.values * 128).astype(np.int8)


def _adaptive(steps: Sequence[int]) -> "TypeTable":
    """Return the types a·i + 2^i of fifteen ``steps`` and INT4, each divided by the power of two above its largest."""
    rows = np.array([*(a * _INDEX + 2**_INDEX for a in steps), _INDEX]) / _powers(steps)[:, None]
    return _table(rows, rows, tuple(range(TYPES)))


def _powers(steps: Sequence[int]) -> np.ndarray:
    largest = np.array([7 * a + 2**7 for a in steps] + [7], np.float64)
    return np.asarray(2.0 ** np.ceil(np.log2(largest)))


def _table(positive: np.ndarray, negative: np.ndarray, ids: tuple[int, ...]) -> TypeTable:
    values = np.full((TYPES, CODES), np.nan, np.float32)
    values[list(ids)] = np.concatenate([positive, -negative], axis=1).astype(np.float16)
    return TypeTable(values, ids)


#: The sixteen types of M-ANT.
MANT = _adaptive(STEPS)
#: Those of the key-value cache: a = 25, which is close to NF4, in place of 5.
MANT_KV = _adaptive(KV_STEPS)
#: NF4 alone, as type 0.
NF4 = _table(np.array([_NF4_POSITIVE]), np.array([_NF4_NEGATIVE]), (0,))


def split_tables() -> np.ndarray:
    """Return (2, 16) int8 by code: ±i and ±(2^i - i), the tables of the exact integer rewriting."""
    halves = np.stack([_INDEX, 2**_INDEX - _INDEX])
    return np.concatenate([halves, -halves], axis=1).astype(np.int8)


def split_factors() -> np.ndarray:
    """Return (2, 16) float32 by type id: what the two tables are multiplied with to give `MANT`'s values."""
    first, second = [a + 1 for a in STEPS] + [1], [1] * len(STEPS) + [0]
    return np.asarray(np.array([first, second]) / _powers(STEPS), np.float32)
