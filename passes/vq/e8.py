"""A 16-bit code of eight elements from the lattice E8: a table of 256 entries, signs and a shift.

E8 is the union of D8 (integer vectors with an even sum) and D8 + 1/2, and packs spheres densest in eight dimensions
(Viazovska, 2017). Its translate by 1/4 is the union of (D8 + 1/2) + 1/4 and (D8 + 1/2) - 1/4. So a point is a point of
D8 + 1/2, which has half-integers of any sign for coordinates, and one bit for the shift. Of D8 + 1/2 this code has the
points whose absolute values are in a table: all 227 vectors of squared norm at most 10, and the first 29, in
lexicographic order, of the 224 of squared norm 12 (Tseng et al., QuIP#, 2024, section 4.2, gives the count):

    bits 0..7   a, the row of the table          bits 8..14   signs of coordinates 0..6 (1: minus)
    bit 15      the shift: 0 for -1/4, 1 for +1/4

The sum of a point of D8 + 1/2 is even, which decides the sign of coordinate 7. The table holds that coordinate negative
where the sum of the absolute values is odd, so that the number of further minus signs is always even.
"""

__all__ = [
    "BITS",
    "RATIOS",
    "RMS",
    "SHIFT",
    "VECTOR",
    "LatticeEncoder",
    "decode_points",
    "nearest_points",
    "signs_and_shifts",
    "table",
]

import functools
from itertools import product

import numpy as np

#: b and v of the code.
BITS, VECTOR = 16, 8
#: The shift from D8 + 1/2.
SHIFT = 0.25
_FULL, _BORDER, _ROWS = 10, 12, 256

#: Root mean square of Gaussian values at which the error of one and of two codes is least, and the size of the second
#: code relative to the first; found by `tests/passes/vq/test_e8.py`.
RMS = {1: 1.04, 2: 0.9}
RATIOS = (1.0, 0.26)


@functools.cache
def table() -> np.ndarray:
    """Return the table: (256, 8) float32, coordinate 7 negative where the sum of absolute values is odd."""
    points = np.array(list(product((0.5, 1.5, 2.5), repeat=VECTOR)), np.float32)
    norms = np.square(points).sum(axis=1)
    inside, border = points[norms <= _FULL], points[norms == _BORDER]
    rows = np.concatenate([inside, border[: _ROWS - len(inside)]])
    rows[rows.sum(axis=1) % 2 == 1, -1] *= -1
    rows.flags.writeable = False
    return rows


@functools.cache
def signs_and_shifts() -> tuple[np.ndarray, np.ndarray]:
    """Return what bits 8 to 15 of a code say: signs (256, 8) of 1 and -1, and shifts (256, 1), both float32."""
    high = np.arange(256)
    flips = (high[:, None] >> np.arange(7)) & 1
    flips = np.concatenate([flips, flips.sum(axis=1, keepdims=True) % 2], axis=1)
    signs = (1 - 2 * flips).astype(np.float32)
    shifts = np.where(high >> 7, np.float32(SHIFT), np.float32(-SHIFT))[:, None]
    return signs, shifts


def decode_points(codes: np.ndarray) -> np.ndarray:
    """Return the points of codes: (...) integers below 2^16 -> (..., 8) float32."""
    signs, shifts = signs_and_shifts()
    return np.asarray(table()[codes & 255] * signs[codes >> 8] + shifts[codes >> 8])


def nearest_points(x: np.ndarray) -> np.ndarray:
    """Return the codes (M,) int64 of the points nearest to x (M, 8) float32."""
    plus, minus = (_nearest_half(x - np.float32(shift)) for shift in (SHIFT, -SHIFT))
    is_plus = plus[1] - _affine(x, SHIFT) < minus[1] - _affine(x, -SHIFT)
    return np.where(is_plus, plus[0] | (1 << 15), minus[0])


def _affine(x: np.ndarray, shift: float) -> np.ndarray:
    """Half of |x|² - |x - shift|², which the two halves' errors leave out."""
    return x.sum(axis=1) * np.float32(shift) - np.float32(VECTOR * shift * shift / 2)


def _nearest_half(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the nearest points of D8 + 1/2 that the code has, and half of |y - point|² - |y|².

    The nearest point of all D8 + 1/2 is one of the code's if it is short, and then no search is needed.
    """
    points = _nearest_of_lattice(y)
    squares = np.square(points).sum(axis=1)
    short = squares <= _FULL
    codes, value = np.empty(len(y), np.int64), np.float32(0.5) * squares - np.einsum("mv,mv->m", y, points)
    codes[short] = _code_of(points[short])
    codes[~short], value[~short] = _search(y[~short])
    return codes, value


def _nearest_of_lattice(y: np.ndarray) -> np.ndarray:
    """Return the nearest points of D8 + 1/2, half-integers with an even sum, to y (M, 8), as (M, 8) float32.

    Each coordinate is rounded by itself; if the sum is odd then, the one that was rounded by most goes to the other
    side (Conway and Sloane, 1982).
    """
    points = np.floor(y) + np.float32(0.5)
    odd = np.flatnonzero(points.sum(axis=1) % 2 != 0)
    off = (y - points)[odd]
    most = np.abs(off).argmax(axis=1)
    points[odd, most] += np.where(off[np.arange(len(odd)), most] >= 0, np.float32(1), np.float32(-1))
    return points


@functools.cache
def _row_of_sizes() -> np.ndarray:
    """Return the row of the table, by absolute values a as Σ (a_i - 1/2) 3^i: (3^8,) int64, -1 where it has none."""
    rows = np.full(3**VECTOR, -1)
    rows[(np.abs(table()) - 0.5).astype(np.int64) @ 3 ** np.arange(VECTOR)] = np.arange(_ROWS)
    return rows


def _code_of(points: np.ndarray) -> np.ndarray:
    """Return the codes, without the bit of the shift, of short points (M, 8) of D8 + 1/2."""
    sizes = (np.abs(points) - np.float32(0.5)).astype(np.int64)
    return _row_of_sizes()[sizes @ 3 ** np.arange(VECTOR)] | _sign_bits(points < 0)


def _sign_bits(minus: np.ndarray) -> np.ndarray:
    """Bit 8 + i says whether coordinate i differs from the table, whose coordinate 7 alone may be negative."""
    return (minus[:, :-1].astype(np.int64) << np.arange(8, 8 + VECTOR - 1)).sum(axis=1)


def _search(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as `_nearest_half` by all rows of the table.

    For a row a of absolute values the best signs are those of y, if their number of minus signs fits the row; else the
    coordinate with the smallest |y_i| a_i takes the other sign, which costs 2 |y_i| a_i.
    """
    size = np.abs(y)
    rows = np.abs(table())
    odd_row = table()[:, -1] < 0
    order = np.argsort(odd_row, kind="stable")
    even_rows = int(np.count_nonzero(~odd_row))
    rows = rows[order]
    odd = (y < 0).sum(axis=1) % 2 == 1
    scores = size @ rows.T - np.float32(0.5) * np.square(rows).sum(axis=1)
    halves = (slice(0, even_rows), slice(even_rows, len(rows)))
    best = np.stack([scores[:, h].argmax(axis=1) for h in halves], axis=1)
    top = np.stack([scores[:, h].max(axis=1) for h in halves], axis=1)
    every, fits = np.arange(len(y)), odd.astype(np.int64)
    pick, value = best[every, fits] + fits * even_rows, top[every, fits]
    for half, columns in enumerate(halves):
        # Only where the other half of the table could still win without the cost.
        some = np.flatnonzero((fits != half) & (top[:, half] > value))
        cost = np.full((len(some), columns.stop - columns.start), np.inf, np.float32)
        for i in range(VECTOR):
            np.minimum(cost, size[some, i, None] * rows[columns, i], out=cost)
        reduced = scores[some, columns] - 2 * cost
        winner = reduced.argmax(axis=1)
        gain = reduced[np.arange(len(some)), winner]
        better = gain > value[some]
        pick[some[better]], value[some[better]] = winner[better] + columns.start, gain[better]
    minus = y < 0
    wrong = np.flatnonzero((pick >= even_rows) != odd)
    minus[wrong, (size[wrong] * rows[pick[wrong]]).argmin(axis=1)] ^= True
    return order[pick] | _sign_bits(minus), -value


class LatticeEncoder:
    """Encodes with one or two lattice codes; see `graphopt.passes.vq.encode.Encoder`. The metric plays no part."""

    def __init__(self, residuals: int) -> None:
        self._ratios = np.array(RATIOS[:residuals], np.float32)

    def encode(self, position: int, x: np.ndarray, metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Encoder`."""
        codes, value = [], np.zeros_like(x)
        for ratio in self._ratios:
            codes.append(nearest_points((x - value) / ratio))
            value = value + ratio * decode_points(codes[-1])
        return np.stack(codes, axis=1), value
