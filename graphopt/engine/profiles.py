"""Optimization profiles: the ranges of shapes that a plan accepts.

Shapes are written as trtexec writes them, ``x:1x4,past.*:1x3x0x64``, with ``*`` in a name for many inputs at once.
Without any, ranges follow from the inputs' names: those of a language model get a batch, a sequence and a cache length.
"""

__all__ = ["Input", "Limits", "Profile", "Range", "Shape", "automatic", "explicit", "parse_shapes"]

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graphopt.errors import EngineError, nearest
from graphopt.ir.kv_cache import CAPACITY, rows_for

Shape = tuple[int, ...]
_BOUNDS = ("min", "opt", "max")


@dataclass(frozen=True)
class Input:
    """One network input: its name, and per axis a size or, for a dynamic axis, its symbol."""

    name: str
    shape: tuple[int | str, ...]

    @property
    def dynamic(self) -> bool:
        """Whether any axis is dynamic."""
        return any(isinstance(d, str) for d in self.shape)

    def __str__(self) -> str:
        return f"'{self.name}' [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Range:
    """The smallest, the most usual and the largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Profile:
    """One optimization profile: a range for every dynamic input, and a name for people."""

    name: str
    ranges: dict[str, Range]


@dataclass(frozen=True)
class Limits:
    """The largest sizes of automatic profiles: sequences per batch, tokens per call, tokens in the cache."""

    batch: int = 4
    seq: int = 512
    past: int = 1536

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("seq", 1), ("past", 0)):
            if getattr(self, name) < least:
                raise EngineError(f"--max-{name} must be at least {least}, not {getattr(self, name)}")


class _Axis(enum.Enum):
    """What a dynamic axis counts: sequences, new tokens, tokens in the cache, both kinds of tokens, or rows of a cache
    that is updated in place."""

    BATCH = enum.auto()
    SEQ = enum.auto()
    PAST = enum.auto()
    TOTAL = enum.auto()
    CAPACITY = enum.auto()


@dataclass(frozen=True)
class _Sizes:
    """One (min, opt, max) triple per kind of axis."""

    batch: Shape
    seq: Shape
    past: Shape
    capacity: Shape

    def of(self, axis: _Axis) -> Shape:
        if axis is _Axis.TOTAL:
            return tuple(s + p for s, p in zip(self.seq, self.past, strict=True))
        sizes = {
            _Axis.BATCH: self.batch, _Axis.SEQ: self.seq, _Axis.PAST: self.past, _Axis.CAPACITY: self.capacity,
        }  # fmt: skip
        return sizes[axis]


def automatic(inputs: Sequence[Input], limits: Limits, *, split: bool, coded: bool = False) -> list[Profile]:
    """Return profiles for dynamic inputs, from their names and axes alone.

    Axis 0 counts sequences. Every other dynamic axis counts tokens: those in the cache for inputs called ``past*``;
    those and the new ones together for the last axis of ``attention_mask`` where there is a cache; the new ones
    elsewhere. Opt is half of max, but a cache that is updated in place is as large as it can be.

    Args:
        inputs: all inputs of the network.
        limits: the largest sizes.
        split: whether a model with a cache gets one profile for prompts and one for generation with one token per call,
            which pays where kernels are chosen per profile at build time.
        coded: whether a cache that is updated in place holds codes: such formats may divide it into pages, which are
            then whole.

    Returns:
        The profiles; none if every input is static.
    """
    dynamic = [i for i in inputs if i.dynamic]
    if not dynamic:
        return []
    cached = any(_is_cache(i) for i in dynamic)
    batch, seq, past = _up_to(1, limits.batch), _up_to(1, limits.seq), _up_to(0, limits.past)
    rows = limits.seq + limits.past
    capacity = (rows_for(1), rows_for(rows), rows_for(rows)) if coded else (1, rows, rows)
    plans = {"default": _Sizes(batch, seq, past, capacity)}
    if cached and split:
        plans = {
            "prefill": _Sizes(batch, seq, (0, 0, limits.past), capacity),
            "decode": _Sizes(batch, (1, 1, 1), past, capacity),
        }
    return [Profile(name, {i.name: _fill(i, sizes, cached) for i in dynamic}) for name, sizes in plans.items()]


def _up_to(least: int, most: int) -> Shape:
    return least, max(least, most // 2), most


def _is_cache(tensor: Input) -> bool:
    return tensor.name.startswith("past")


def _fill(tensor: Input, sizes: _Sizes, cached: bool) -> Range:
    columns = [
        sizes.of(_axis(tensor, axis, cached)) if isinstance(size, str) else (size,) * len(_BOUNDS)
        for axis, size in enumerate(tensor.shape)
    ]
    return Range(*zip(*columns, strict=True))


def _axis(tensor: Input, axis: int, cached: bool) -> _Axis:
    if axis == 0:
        return _Axis.BATCH
    if tensor.shape[axis] == CAPACITY:
        return _Axis.CAPACITY
    if _is_cache(tensor):
        return _Axis.PAST
    if cached and tensor.name == "attention_mask" and axis == len(tensor.shape) - 1:
        return _Axis.TOTAL
    return _Axis.SEQ


def explicit(
    inputs: Sequence[Input], minimum: Sequence[str], optimum: Sequence[str], maximum: Sequence[str]
) -> list[Profile]:
    """Return the profiles that shape strings describe: the n-th string of each kind makes the n-th profile.

    A bound that is not given is taken from the others: opt from max, min from opt, max from opt.

    Raises:
        EngineError: a string cannot be read, names an unknown input, has the wrong rank, contradicts a static axis or
            the order min <= opt <= max, or leaves a dynamic input without a shape.
    """
    given = dict(zip(_BOUNDS, (minimum, optimum, maximum), strict=True))
    count = max(map(len, given.values()))
    for bound, texts in given.items():
        if texts and len(texts) != count:
            raise EngineError(
                f"--{bound}-shapes was given {len(texts)} times and another bound {count} times; give one per profile"
            )
    profiles = []
    for n in range(count):
        shapes = {
            b: _resolve(parse_shapes(t[n], f"--{b}-shapes"), inputs, f"--{b}-shapes") for b, t in given.items() if t
        }
        ranges = {}
        for tensor in inputs:
            known = {bound: found[tensor.name] for bound, found in shapes.items() if tensor.name in found}
            if known:
                ranges[tensor.name] = _complete(tensor, known)
            elif tensor.dynamic:
                raise EngineError(
                    f"input {tensor} is dynamic but has no shape; add '{tensor.name}:...' to --opt-shapes"
                )
        profiles.append(Profile(f"profile {n}", {i.name: ranges[i.name] for i in inputs if i.dynamic}))
    return [p for p in profiles if p.ranges]


def parse_shapes(text: str, flag: str = "shapes") -> dict[str, Shape]:
    """Read ``name:1x4,other:2x3``.

    >>> parse_shapes("x:1x4,scale:1")
    {'x': (1, 4), 'scale': (1,)}

    Raises:
        EngineError: the text does not have this form, or names an input twice.
    """
    shapes: dict[str, Shape] = {}
    for item in text.split(","):
        name, colon, dims = item.strip().rpartition(":")
        if not colon or not name or not re.fullmatch(r"\d+(x\d+)*", dims):
            raise EngineError(f"cannot read '{item}' in {flag}; write it like x:1x4,y:1x8x64")
        if name in shapes:
            raise EngineError(f"{flag} names input '{name}' twice")
        shapes[name] = tuple(int(d) for d in dims.split("x"))
    return shapes


def _resolve(shapes: dict[str, Shape], inputs: Sequence[Input], flag: str) -> dict[str, Shape]:
    """Expand patterns to input names; an exact name wins over a pattern."""
    names = [i.name for i in inputs]
    resolved: dict[str, Shape] = {}
    for key in sorted(shapes, key=lambda k: k in names):
        matches = [key] if key in names else [n for n in names if "*" in key and fnmatchcase(n, key)]
        if not matches:
            raise EngineError(f"{flag} names input '{key}', which the model does not have{nearest(key, names)}")
        resolved.update(dict.fromkeys(matches, shapes[key]))
    for tensor in inputs:
        if tensor.name in resolved:
            _check_shape(tensor, resolved[tensor.name], flag)
    return resolved


def _check_shape(tensor: Input, shape: Shape, flag: str) -> None:
    text = "x".join(map(str, shape))
    if len(shape) != len(tensor.shape):
        raise EngineError(f"input {tensor} has {len(tensor.shape)} dimensions, but {flag} gives {text}")
    for axis, (size, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if isinstance(size, int) and size != wanted:
            raise EngineError(f"axis {axis} of input {tensor} is fixed at {size}, but {flag} gives {text}")


def _complete(tensor: Input, known: dict[str, Shape]) -> Range:
    fallback = known.get("opt") or known.get("max") or known["min"]
    full = Range(known.get("min", fallback), fallback, known.get("max", fallback))
    for axis, (low, opt, high) in enumerate(zip(full.min, full.opt, full.max, strict=True)):
        if not low <= opt <= high:
            raise EngineError(
                f"axis {axis} of input {tensor} has min {low}, opt {opt}, max {high}; they must not decrease"
            )
    return full
