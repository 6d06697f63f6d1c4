"""Groups of keys and values to 4 bits in real time (M-ANT, HPCA'25, sections 4.3 and 5.2), in numpy.

A group of g values becomes g codes and one 16-bit word:

    word = scale, a float16 whose last four bits of fraction are the type id        (scale: 6 bits of fraction)

so that a kernel reads type and scale at once: ``id = word & 15``, ``scale = half(word & 0xfff0)``. Codes, values and
thresholds are those of types.py (`MANT_KV`), and rounding is to the nearest value, at a tie to the smaller magnitude.

The type is selected without a search over all:

    trial       the one of four candidates (type, share of the largest value) with the least squared error (default)
    variance3   by the variance of x / max|x|, as the authors' code does: below 0.05 a = 0, to 0.25 a = 25, above INT4
    variance8   the same with eight types

Candidates were chosen to minimize the error, relative to that of NF4, over normal, Laplace, Student-t and uniform
values and real keys and values (README.md has the table): one look at four errors beats a statistic that has to guess.
"""

__all__ = [
    "INFINITE",
    "NAN",
    "POWERS",
    "SELECTORS",
    "TRIAL",
    "VARIANCE",
    "decode",
    "decode_scale",
    "encode",
    "encode_scale",
    "scale_values",
    "words_to_bytes",
]

import numpy as np

from graphopt.passes.mant.types import CODES, INT4_TYPE, KV_STEPS, MANT_KV

#: Selectors by the value of the op's attribute.
SELECTORS = ("trial", "variance3", "variance8")
#: Type ids and shares of the largest value that the trial compares, in the order in which ties are decided.
TRIAL = tuple((KV_STEPS.index(a), share) for a, share in ((10, 1.0), (20, 0.95), (40, 0.95), (110, 0.95)))
#: Bounds of the variance, and type ids below each and above the last, by selector.
VARIANCE = {
    "variance3": ((0.05, 0.25), (KV_STEPS.index(0), KV_STEPS.index(25), INT4_TYPE)),
    "variance8": (
        (0.0417, 0.0797, 0.122, 0.1368, 0.1446, 0.1528, 0.1611),
        (*(KV_STEPS.index(a) for a in (0, 20, 40, 60, 80, 100, 120)), INT4_TYPE),
    ),
}

_SIGN = CODES // 2
_MAGNITUDES = np.ascontiguousarray(MANT_KV.values[:, :_SIGN])
_BOUNDS = np.ascontiguousarray(MANT_KV.boundaries[:, _SIGN:])
#: A scale is an 11-bit number, exponent before fraction; this one and all above it are not finite.
INFINITE, NAN = 31 << 6, (32 << 6) - 1
POWERS = np.asarray(2.0 ** np.arange(-14, 16), np.float32)


def scale_values() -> np.ndarray:
    """Return (2048,) float32: the scale that each 11-bit number stands for."""
    return (np.arange(2048, dtype=np.uint16) << np.uint16(4)).view(np.float16).astype(np.float32)


def encode_scale(scale: np.ndarray) -> np.ndarray:
    """Return the 11-bit numbers nearest to ``scale`` (float32, at least 0 or NaN), ties to even, as int32."""
    exponent = (scale[..., None] >= POWERS).sum(axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        fraction = np.rint(scale * (np.float32(64) / POWERS[np.maximum(exponent, 1) - 1]))
        number = np.minimum(fraction + np.float32(64) * np.maximum(exponent - 1, 0), np.float32(INFINITE))
    return np.where(np.isnan(scale), NAN, np.nan_to_num(number)).astype(np.int32)


def decode_scale(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return type ids uint8 and scales float32 of ``words`` uint16, whose sign bit is ignored."""
    return (words & np.uint16(15)).astype(np.uint8), scale_values()[words >> np.uint16(4) & np.uint16(2047)]


def words_to_bytes(words: np.ndarray) -> np.ndarray:
    """Return (..., 2) int8, little endian, of ``words`` (...,) uint16."""
    return np.ascontiguousarray(words[..., None].astype("<u2")).view(np.int8)


def encode(x: np.ndarray, selector: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantize groups.

    Args:
        x: (..., g) float32.
        selector: one of `SELECTORS`.

    Returns:
        codes (..., g) uint8, and words (...,) uint16. A group with NaN or Inf gets a scale that is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        amax = np.abs(x).max(axis=-1) + (x * np.float32(0)).sum(axis=-1)
        ids, scale = _trial(x, amax) if selector == "trial" else _by_variance(x, amax, selector)
        number = encode_scale(scale)
        codes = _places(x, ids, scale_values()[number]) | ((x < 0).view(np.uint8) << np.uint8(3))
    return codes, (number << 4 | ids).astype(np.uint16)


def decode(codes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return (..., g) float32: what ``codes`` (..., g) uint8 with ``words`` (...,) uint16 stand for."""
    ids, scale = decode_scale(words)
    with np.errstate(invalid="ignore"):
        return np.asarray(MANT_KV.values[ids[..., None], codes] * scale[..., None])


def _places(x: np.ndarray, ids: np.ndarray | int, scale: np.ndarray) -> np.ndarray:
    """Return magnitude indices uint8 of ``x`` (..., g) under types ``ids`` and ``scale`` (...,)."""
    bounds = np.broadcast_to(_BOUNDS[ids], (*scale.shape, _SIGN - 1)) * scale[..., None]
    return (np.abs(x)[..., None] > bounds[..., None, :]).sum(axis=-1, dtype=np.uint8)


def _trial(x: np.ndarray, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best = np.full(amax.shape, np.inf, np.float32)
    ids, scales = np.full(amax.shape, TRIAL[0][0], np.uint8), np.zeros_like(amax)
    for number, (type_id, share) in enumerate(TRIAL):
        scale = amax * np.float32(share / MANT_KV.largest[type_id])
        used = scale_values()[encode_scale(scale)]
        magnitudes = _MAGNITUDES[type_id][_places(x, type_id, used)] * used[..., None]
        error = np.square(np.abs(x) - magnitudes).sum(axis=-1)
        better = (error < best) if number else np.ones(amax.shape, bool)
        best, ids = np.where(better, error, best), np.where(better, np.uint8(type_id), ids)
        scales = np.where(better, scale, scales)
    return ids, scales


def _by_variance(x: np.ndarray, amax: np.ndarray, selector: str) -> tuple[np.ndarray, np.ndarray]:
    bounds, types = VARIANCE[selector]
    inverse = np.where(amax == 0, np.float32(0), np.float32(1) / amax)
    u = x * inverse[..., None]
    centered = u - u.mean(axis=-1, keepdims=True)
    variance = np.square(centered).sum(axis=-1) / np.float32(max(1, x.shape[-1] - 1))
    place = sum((variance >= np.float32(bound)).astype(np.intp) for bound in bounds)
    ids = np.array(types, np.uint8)[place]
    return ids, np.asarray(amax * (np.float32(1) / MANT_KV.largest[ids]))
