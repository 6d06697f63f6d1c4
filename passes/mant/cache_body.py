"""The body of MANTCachedAttention in standard ops; names are those of cache_numerics.py and cache_codes.py."""

__all__ = ["write"]

import numpy as np
import onnx

from graphopt.core.body import BodyBuilder
from graphopt.core.cached_body import appended, attend, first_rows, rotated, rows_of_present
from graphopt.numerics import affine
from graphopt.numerics.packing import PACK_STEP
from graphopt.passes.mant import cache_codes
from graphopt.passes.mant.cache_codes import SELECTORS, TRIAL, VARIANCE
from graphopt.passes.mant.types import CODES, MANT_KV

_HALF = CODES // 2
_MAGNITUDES, _BOUNDS = MANT_KV.values[:, :_HALF], MANT_KV.boundaries[:, _HALF:]
_INT64, _INT32 = onnx.TensorProto.INT64, onnx.TensorProto.INT32


def write(b: BodyBuilder) -> None:
    """Write present_k, ..., present_sink and y."""
    start = first_rows(b)
    q, k = rotated(b, "q", "q"), rotated(b, "k", "k")
    rows = rows_of_present(b, start)
    centered = b.op("Sub", b.cast(k), b.op("Unsqueeze", b.cast("k_center"), _i(b, 1)))
    codes, number, ids = _encode(b, _split(b, centered, "past_v_window"))
    appended(b, "past_k", _int8(b, _packed(b, _joined(b, codes, k))), rows, "present_k")
    words = _int8(b, _joined(b, _words(b, number, ids), k))
    appended(b, "past_k_meta", words, rows, "present_k_meta")
    values = _Values(b, start)
    values.write()
    values.write_sink(k)
    attend(b, q, _keys(b), values.dequantized(), start)


def _dims(b: BodyBuilder, tensor: str, start: int, stop: int) -> str:
    return str(b.op("Slice", b.op("Shape", tensor), b.const([start], np.int64), b.const([stop], np.int64)))


def _i(b: BodyBuilder, *values: int) -> str:
    return b.const(values, np.int64)


def _range(b: BodyBuilder, count: str) -> str:
    scalar = b.op("Reshape", count, b.const(np.zeros(0), np.int64))
    return str(b.op("Range", b.const(0, np.int64), scalar, b.const(1, np.int64)))


def _shaped(b: BodyBuilder, x: str, *sizes: str) -> str:
    return str(b.op("Reshape", x, b.op("Concat", *sizes, axis=0)))


def _int8(b: BodyBuilder, x: str) -> str:
    """Return integers in -128..127, held as float32, as int8."""
    return str(b.op("QuantizeLinear", x, b.const(1.0), b.const(0, np.int8)))


def _float(b: BodyBuilder, x: str) -> str:
    """Return int8 as float32."""
    return str(b.op("DequantizeLinear", x, b.const(1.0), b.const(0, np.int8)))


def _split(b: BodyBuilder, x: str, window: str) -> str:
    """Return (B, H, S, D) as (B, H, S, D / g, g); g is axis 2 of the ``window``."""
    group = _dims(b, window, 2, 3)
    return _shaped(b, x, _dims(b, x, 0, 3), b.op("Div", _dims(b, x, 3, 4), group), group)


def _joined(b: BodyBuilder, x: str, like: str) -> str:
    """Return (B, H, S, A, C) as (B, H, S, A C); the first three are those of ``like``."""
    return _shaped(b, x, _dims(b, like, 0, 3), b.op("Mul", _dims(b, x, 3, 4), _dims(b, x, 4, 5)))


def _packed(b: BodyBuilder, codes: str) -> str:
    """Return the bytes, as float32 in -128..127, of `pack_int4` along the last of four axes, a multiple of 32."""
    half = PACK_STEP // 2
    lead, width = _dims(b, codes, 0, 3), _dims(b, codes, 3, 4)
    vectors = _shaped(b, codes, lead, b.op("Div", width, _i(b, PACK_STEP)), _i(b, 2), _i(b, half))
    low, high = (b.op("Gather", vectors, b.const(i, np.int64), axis=-2) for i in (0, 1))
    byte = b.op("Add", low, b.op("Mul", high, b.const(16.0)))
    return _shaped(b, _signed(b, byte), lead, b.op("Div", width, _i(b, 2)))


def _signed(b: BodyBuilder, byte: str) -> str:
    """Return 0..255 as -128..127, float32."""
    wrap = b.cast(b.op("GreaterOrEqual", byte, b.const(128.0)))
    return str(b.op("Sub", byte, b.op("Mul", wrap, b.const(256.0))))


def _words(b: BodyBuilder, number: str, ids: str) -> str:
    """Return the bytes (..., 2), as float32, of scale numbers and type ids (..., 1)."""
    sixteen = b.const(16.0)
    high = b.op("Floor", b.op("Mul", number, b.const(1 / 16)))
    low = b.op("Add", b.op("Mul", b.op("Sub", number, b.op("Mul", high, sixteen)), sixteen), ids)
    return str(b.op("Concat", _signed(b, low), high, axis=-1))


def _amax(b: BodyBuilder, x: str) -> str:
    """Return the largest magnitude of the last axis, (..., 1); not finite where any is not."""
    poison = b.reduce("Sum", b.op("Mul", x, b.const(0.0)), -1)
    return str(b.op("Add", b.reduce("Max", b.op("Abs", x), -1), poison))


def _encode_scale(b: BodyBuilder, scale: str) -> str:
    """Return the 11-bit numbers of scales, float32."""
    zero, one = b.const(0.0), b.const(1.0)
    passed = b.cast(b.op("GreaterOrEqual", b.op("Unsqueeze", scale, _i(b, -1)), b.const(cache_codes.POWERS)))
    exponent = b.op("Max", b.op("Squeeze", b.reduce("Sum", passed, -1), _i(b, -1)), one)
    below = b.op("Sub", exponent, one)
    factor = b.op("Gather", b.const(np.float32(64) / cache_codes.POWERS), b.cast(below, _INT32), axis=0)
    fraction = b.op("Round", b.op("Mul", scale, factor))
    number = b.op("Min", b.op("Add", fraction, b.op("Mul", below, b.const(64.0))), b.const(float(cache_codes.INFINITE)))
    nan = b.op("IsNaN", scale)
    # The minimum of a NaN is open in ONNX: it is replaced before and after.
    return str(b.op("Where", nan, b.const(float(cache_codes.NAN)), b.op("Where", nan, zero, number)))


def _scale_of(b: BodyBuilder, number: str) -> str:
    return str(b.op("Gather", b.const(cache_codes.scale_values()), b.cast(number, _INT32), axis=0))


def _place(b: BodyBuilder, magnitude: str, bounds: str) -> str:
    """Return magnitude indices (..., g) float32; ``bounds`` (..., 1, 7) or broadcastable."""
    above = b.cast(b.op("Greater", b.op("Unsqueeze", magnitude, _i(b, -1)), bounds))
    return str(b.op("Squeeze", b.reduce("Sum", above, -1), _i(b, -1)))


def _encode(b: BodyBuilder, x: str) -> tuple[str, str, str]:
    """Return codes (..., g), scale numbers and type ids (..., 1), all as float32, of groups ``x`` (..., g)."""
    magnitude, amax = b.op("Abs", x), _amax(b, x)
    selector = b.attribute("selector", onnx.AttributeProto.INT)
    ids, scale = _trial(b, magnitude, amax)
    for value, name in enumerate(SELECTORS):
        if name in VARIANCE:
            chosen = b.op("Equal", selector, b.const(value, np.int64))
            other, its_scale = _by_variance(b, x, amax, name)
            ids, scale = b.op("Where", chosen, other, ids), b.op("Where", chosen, its_scale, scale)
    number = _encode_scale(b, scale)
    of_type = b.op("Gather", b.const(_BOUNDS), b.cast(ids, _INT32), axis=0)
    bounds = b.op("Mul", of_type, b.op("Unsqueeze", _scale_of(b, number), _i(b, -1)))
    negative = b.cast(b.op("Less", x, b.const(0.0)))
    codes = b.op("Add", _place(b, magnitude, bounds), b.op("Mul", negative, b.const(float(_HALF))))
    return codes, number, ids


def _trial(b: BodyBuilder, magnitude: str, amax: str) -> tuple[str, str]:
    best = ids = scale = ""
    shares = [np.float32(share / MANT_KV.largest[type_id]) for type_id, share in TRIAL]
    candidates = b.op("Mul", amax, b.const(shares))
    scales = _scale_of(b, _encode_scale(b, candidates))
    for number, (type_id, _) in enumerate(TRIAL):
        candidate, used = (b.op("Gather", x, _i(b, number), axis=-1) for x in (candidates, scales))
        bounds = b.op("Mul", b.op("Unsqueeze", used, _i(b, -1)), b.const(_BOUNDS[type_id]))
        place = b.cast(_place(b, magnitude, bounds), _INT32)
        value = b.op("Mul", b.op("Gather", b.const(_MAGNITUDES[type_id]), place, axis=0), used)
        difference = b.op("Sub", magnitude, value)
        error, its_id = b.reduce("Sum", b.op("Mul", difference, difference), -1), b.const(float(type_id))
        if not best:
            best, ids, scale = error, its_id, candidate
            continue
        better = b.op("Less", error, best)
        best, ids, scale = (
            b.op("Where", better, new, old) for new, old in ((error, best), (its_id, ids), (candidate, scale))
        )
    return ids, scale


def _by_variance(b: BodyBuilder, x: str, amax: str, selector: str) -> tuple[str, str]:
    bounds, types = VARIANCE[selector]
    zero, one = b.const(0.0), b.const(1.0)
    u = b.op("Mul", x, b.op("Where", b.op("Equal", amax, zero), zero, b.op("Div", one, amax)))
    centered = b.op("Sub", u, b.reduce("Mean", u, -1))
    count = b.cast(b.op("Sub", b.op("Gather", b.op("Shape", x), _i(b, -1), axis=0), _i(b, 1)))
    variance = b.op("Div", b.reduce("Sum", b.op("Mul", centered, centered), -1), b.op("Max", count, one))
    passed = b.cast(b.op("GreaterOrEqual", variance, b.const(bounds)))
    place = b.cast(b.reduce("Sum", passed, -1), _INT32)
    ids = b.op("Gather", b.const(types), place, axis=0)
    inverse = np.float32(1) / MANT_KV.largest[list(types)]
    return ids, b.op("Mul", amax, b.op("Gather", b.const(inverse), place, axis=0))


def _decode(b: BodyBuilder, codes: str, meta: str) -> str:
    """Return (..., g) float32 of codes (..., g) in 0..15, float32, and words (..., 2) int8."""
    byte = _float(b, meta)
    low, high = (b.op("Gather", byte, _i(b, i), axis=-1) for i in (0, 1))
    unsigned = b.op("Add", low, b.op("Mul", b.cast(b.op("Less", low, b.const(0.0))), b.const(256.0)))
    sixteen = b.const(16.0)
    upper = b.op("Floor", b.op("Mul", unsigned, b.const(1 / 16)))
    ids = b.op("Sub", unsigned, b.op("Mul", upper, sixteen))
    # A negative high byte is no scale; nothing reads what it belongs to, but a look-up must find something.
    number = b.op("Add", b.op("Mul", b.op("Max", high, b.const(0.0)), sixteen), upper)
    index = b.cast(b.op("Add", b.op("Mul", ids, sixteen), codes), _INT32)
    values = b.op("Gather", b.const(MANT_KV.values.reshape(-1)), index, axis=0)
    return str(b.op("Mul", values, _scale_of(b, number)))


def _keys(b: BodyBuilder) -> str:
    """Return K (B, Hkv, C, D) float32 of present_k."""
    codes = _split(b, b.unpack_int4("present_k", signed=False), "past_v_window")
    lead = _dims(b, codes, 0, 4)
    keys = _decode(b, codes, _shaped(b, "present_k_meta", lead, _i(b, 2)))
    center = b.op("Unsqueeze", b.cast("k_center"), _i(b, 1))
    first = b.op("Sub", b.op("Gather", b.cast("present_sink"), _i(b, 0), axis=2), center)
    return _with_sink(b, _joined(b, keys, "present_k"), first)


def _with_sink(b: BodyBuilder, rows: str, first: str) -> str:
    """Return ``rows`` (B, Hkv, C, D) with row 0 replaced by ``first`` (B, Hkv, 1, D)."""
    token = b.op("Unsqueeze", _range(b, _dims(b, rows, 2, 3)), _i(b, 1))
    return str(b.op("Where", b.op("Equal", token, _i(b, 0)), first, rows))


class _Values:
    """The values' part: appends to the window, completes pages, and reads both."""

    def __init__(self, b: BodyBuilder, start: str) -> None:
        self._b, self._start = b, start
        self._lead = _dims(b, "past_v", 0, 2)
        self._capacity, self._size = _dims(b, "past_v", 2, 3), _dims(b, "v", 3, 4)
        self._group = _dims(b, "past_v_window", 2, 3)
        self._seq = _dims(b, "v", 1, 2)
        self._pages = b.op("Div", self._capacity, self._group)
        end = b.op("Add", start, self._seq)
        self._end = b.op("Min", end, self._capacity)  # (B, 1)

    def write(self) -> None:
        """Write present_v, present_v_meta, present_v_window, present_v_scale."""
        b = self._b
        new = b.cast(b.op("Transpose", "v", perm=[0, 2, 1, 3]))
        kind = onnx.TensorProto.FLOAT16
        scale = b.cast(b.op("Div", _amax(b, new), b.const(float(affine.Q_MAX[8]))), kind)
        ratio = b.op("Div", new, b.cast(scale))
        limit = float(affine.Q_MAX[8])
        ratio = b.op("Where", b.op("IsNaN", ratio), b.const(0.0), ratio)
        codes = _int8(b, b.op("Max", b.op("Min", ratio, b.const(limit)), b.const(-limit)))
        row = self._window_rows()
        self._rows(b.op("Concat", "past_v_window", codes, axis=2), row, "present_v_window")
        past_scale = b.op("Unsqueeze", "past_v_scale", _i(b, -1))
        scales = self._rows(b.op("Concat", past_scale, scale, axis=2), row)
        b.op("Squeeze", scales, _i(b, -1), outputs=["present_v_scale"])
        exact = b.op("Mul", _float(b, codes), b.cast(scale))
        self._write_pages(b.op("Concat", self._window("past"), exact, axis=2))

    def write_sink(self, k: str) -> None:
        """Write present_sink; ``k`` (B, Hkv, S, D) T is rotated."""
        b = self._b
        two = _i(b, 2)
        given = b.op("And", b.op("LessOrEqual", self._start, _i(b, 0)), b.op("Greater", self._seq, _i(b, 0)))
        both = b.op("Concat", "past_sink", k, b.op("Transpose", "v", perm=[0, 2, 1, 3]), axis=2)
        row = b.op("Concat", two, b.op("Add", two, self._seq), axis=0)
        self._rows(both, b.op("Where", given, row, _i(b, 0, 1)), "present_sink")

    def _window(self, which: str) -> str:
        """Return what the window stands for, (B, Hkv, g, D) float32."""
        b = self._b
        scale = b.op("Unsqueeze", b.cast(f"{which}_v_scale"), _i(b, -1))
        return str(b.op("Mul", _float(b, f"{which}_v_window"), scale))

    def _window_rows(self) -> str:
        """Return (B, g): the row of past ++ new that each row of the window takes."""
        b = self._b
        row = b.op("Unsqueeze", _range(b, self._group), _i(b, 0))
        back = b.op("Mod", b.op("Sub", b.op("Sub", self._end, _i(b, 1)), row), self._group)
        token = b.op("Sub", b.op("Sub", self._end, _i(b, 1)), back)
        new = b.op("Sub", token, self._start)
        return str(b.op("Where", b.op("GreaterOrEqual", new, _i(b, 0)), b.op("Add", self._group, new), row))

    def _rows(self, x: str, row: str, out: str | None = None) -> str:
        """Return (B, Hkv, R, W): the rows (B, R) of ``x`` (B, Hkv, N, W)."""
        b = self._b
        count = _dims(b, x, 2, 3)
        matrices = b.op("Mul", _dims(b, x, 0, 1), _dims(b, x, 1, 2))
        first = _shaped(b, b.op("Mul", _range(b, matrices), count), self._lead, _i(b, 1))
        index = b.op("Add", first, b.op("Unsqueeze", row, _i(b, 1)))
        flat = _shaped(b, x, b.op("Mul", matrices, count), _dims(b, x, 3, 4))
        return str(b.op("Gather", flat, index, axis=0, outputs=[out] if out else 1))

    def _write_pages(self, tokens: str) -> None:
        """Write present_v and present_v_meta; ``tokens`` (B, Hkv, g + S, D) float32 are past window ++ new."""
        b, group = self._b, self._group
        first = b.op("Div", self._start, group)  # (B, 1): the open page
        touched = b.op("Add", b.op("Div", b.op("Add", self._seq, b.op("Sub", group, _i(b, 1))), group), _i(b, 1))
        token = b.op(
            "Add", b.op("Mul", first, group), b.op("Unsqueeze", _range(b, b.op("Mul", touched, group)), _i(b, 0))
        )
        new = b.op("Min", b.op("Sub", token, self._start), b.op("Sub", self._seq, _i(b, 1)))
        row = b.op("Where", b.op("GreaterOrEqual", new, _i(b, 0)), b.op("Add", group, new), b.op("Mod", token, group))
        paged = _shaped(b, self._rows(tokens, row), self._lead, touched, group, self._size)
        codes, number, ids = _encode(b, b.op("Transpose", paged, perm=[0, 1, 2, 4, 3]))
        flat = _shaped(b, codes, self._lead, b.op("Mul", touched, self._size), group)
        words = _words(b, number, ids)
        page = b.op("Unsqueeze", _range(b, self._pages), _i(b, 0))
        after = b.op("Mul", b.op("Add", page, _i(b, 1)), group)
        complete = b.op("And", b.op("LessOrEqual", after, self._end), b.op("Greater", after, self._start))
        place = b.op("Sub", page, first)
        source = b.op("Where", complete, b.op("Add", self._pages, place), page)
        for name, made in (("v", _packed(b, flat)), ("v_meta", words)):
            width = b.op("Mul", _dims(b, f"past_{name}", 3, 4), group)
            past = _shaped(b, f"past_{name}", self._lead, self._pages, width)
            both = b.op("Concat", past, _shaped(b, _int8(b, made), self._lead, touched, width), axis=2)
            b.op("Reshape", self._rows(both, source), b.op("Shape", f"past_{name}"), outputs=[f"present_{name}"])

    def dequantized(self) -> str:
        """Return V (B, Hkv, C, D) float32: complete pages, and the window for the open one."""
        b, group = self._b, self._group
        sizes = (self._lead, b.op("Mul", self._pages, self._size), b.op("Div", group, _i(b, 2)))
        codes = b.unpack_int4(_shaped(b, "present_v", *sizes), signed=False)
        meta = _shaped(b, "present_v_meta", *sizes[:2], _i(b, 2))
        decoded = _shaped(b, _decode(b, codes, meta), self._lead, self._pages, self._size, group)
        paged = _shaped(b, b.op("Transpose", decoded, perm=[0, 1, 2, 4, 3]), self._lead, self._capacity, self._size)
        token = _range(b, self._capacity)
        opened = b.op("Mul", b.op("Div", self._end, group), group)
        is_open = b.op("Unsqueeze", b.op("GreaterOrEqual", b.op("Unsqueeze", token, _i(b, 0)), opened), _i(b, 1, 3))
        window = b.op("Gather", self._window("present"), b.op("Mod", token, group), axis=2)
        values = b.op("Where", is_open, window, paged)
        return _with_sink(b, values, b.op("Gather", b.cast("present_sink"), _i(b, 1), axis=2))
