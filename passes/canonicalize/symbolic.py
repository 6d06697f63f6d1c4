"""Integer tensors of rank 0 or 1 as Python values: what shape arithmetic comes to.

Exporters spell shapes by dozens of nodes (Shape, Gather, Unsqueeze, Concat, Where(Equal(s, -1), 1, s), ...). A
dimension that is not known as a number is a symbol: its ``dim_param``, or (tensor name, axis). Equal symbols are equal
numbers, which is all that matching needs.
"""

__all__ = ["Entry", "dimension", "integers", "product"]

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import query

#: An integer, a bool (from a comparison), or a symbol: a string or a tuple. None: not known.
Entry = Any

#: Longer vectors are data, not shapes.
_MAX_ENTRIES = 16
#: Operators that give no scalar, so that the number of entries is the shape.
_VECTORS = ("Concat", "ConstantOfShape", "Reshape", "Shape", "Slice")


def dimension(tensor: gs.Tensor, axis: int) -> Entry:
    """Return dimension ``axis`` of ``tensor`` as an entry; None if not even its rank is known."""
    if tensor.shape is None or not -len(tensor.shape) <= axis < len(tensor.shape):
        return None
    axis %= len(tensor.shape)
    size = tensor.shape[axis]
    if isinstance(size, (int, np.integer)):
        return int(size)
    return _symbol(size) if size else (tensor.name, axis)


def _symbol(text: str) -> Entry:
    """Return a ``dim_param``; torch writes sums out ("past + sequence"), which become what Add gives."""
    terms = [int(term) if term.isdecimal() else term for term in text.split(" + ")]
    return reduce(_add, terms)


def integers(tensor: gs.Tensor) -> list[Entry] | None:
    """Return the entries of an integer tensor of rank 0 or 1; None if it is no shape arithmetic."""
    if query.is_constant(tensor):
        array = query.constant_array(tensor, limit=_MAX_ENTRIES)
        if array is None or array.ndim > 1 or array.dtype.kind not in "iub":
            return None
        return list(array.reshape(-1).tolist())
    node = query.producer(tensor)
    if node is None or node.domain not in (None, "", "ai.onnx") or node.op not in _EVALUATORS:
        return None
    return _EVALUATORS[node.op](node)


def _inputs(node: gs.Node) -> list[list[Entry]] | None:
    values = [integers(t) for t in node.inputs]
    return None if any(v is None for v in values) else [v for v in values if v is not None]


def _shape(node: gs.Node) -> list[Entry] | None:
    (tensor,) = node.inputs
    if tensor.shape is not None:
        every = [dimension(tensor, i) for i in range(len(tensor.shape))]
    elif query.is_op(query.producer(tensor), *_VECTORS) and (entries := integers(tensor)) is not None:
        every = [len(entries)]
    else:
        return None
    return every[node.attrs.get("start", 0) : node.attrs.get("end", len(every))]


def _same(node: gs.Node) -> list[Entry] | None:
    return integers(node.inputs[0])


def _unsqueeze(node: gs.Node) -> list[Entry] | None:
    entries = integers(node.inputs[0])
    return entries if entries is not None and len(entries) == 1 else None


def _reshape(node: gs.Node) -> list[Entry] | None:
    """Between scalars and vectors; nothing here has rank 2, or a Concat would not be what it seems."""
    entries, target = integers(node.inputs[0]), integers(node.inputs[1])
    return entries if target is not None and len(target) <= 1 else None


def _cast(node: gs.Node) -> list[Entry] | None:
    return integers(node.inputs[0]) if node.attrs.get("to") in (6, 7, np.int32, np.int64) else None


def _concat(node: gs.Node) -> list[Entry] | None:
    values = _inputs(node)
    return None if values is None else [entry for v in values for entry in v]


def _gather(node: gs.Node) -> list[Entry] | None:
    values = _inputs(node)
    if values is None or node.attrs.get("axis", 0) != 0:
        return None
    data, where = values
    picked = [i for i in where if isinstance(i, int) and -len(data) <= i < len(data)]
    return [data[i] for i in picked] if len(picked) == len(where) else None


def _slice(node: gs.Node) -> list[Entry] | None:
    values = _inputs(node)
    if values is None:
        return None
    data, start, stop, *rest = values
    axes, steps = (rest + [[0], [1]][len(rest) :])[:2]
    bounds = [*start, *stop, *axes, *steps]
    if len(bounds) != 4 or not all(isinstance(b, int) for b in bounds) or axes != [0] or steps != [1]:
        return None
    return data[start[0] : stop[0]]


def _constant_of_shape(node: gs.Node) -> list[Entry] | None:
    count = integers(node.inputs[0])
    value = node.attrs.get("value")
    fill = query.scalar(value) if isinstance(value, gs.Constant) else 0
    if count is None or len(count) != 1 or not isinstance(count[0], int) or count[0] > _MAX_ENTRIES or fill is None:
        return None
    return [int(fill)] * count[0]


def _broadcast(values: Sequence[list[Entry]]) -> list[list[Entry]] | None:
    longest = max(len(v) for v in values)
    if any(len(v) not in (1, longest) for v in values):
        return None
    return [v if len(v) == longest else v * longest for v in values]


def _elementwise(combine: Callable[..., Entry]) -> Callable[[gs.Node], list[Entry] | None]:
    def evaluate(node: gs.Node) -> list[Entry] | None:
        values = _inputs(node)
        aligned = _broadcast(values) if values else None
        return None if aligned is None else [combine(*entries) for entries in zip(*aligned, strict=True)]

    return evaluate


def _negative(entry: Entry) -> bool:
    """A symbol is a dimension, or a product or sum of dimensions: only numbers can be negative."""
    return isinstance(entry, int) and entry < 0


def product(a: Entry, b: Entry) -> Entry:
    """Return a · b: a number, a symbol, or None where it is not known."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if a is None or b is None or _negative(a) or _negative(b):
        return None
    if 1 in (a, b):
        return b if a == 1 else a
    return ("mul", *sorted((a, b), key=repr))


def _add(a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a is None or b is None or _negative(a) or _negative(b):
        return None
    if 0 in (a, b):
        return b if a == 0 else a
    return ("add", *sorted((a, b), key=repr))


def _sub(a: Entry, b: Entry) -> Entry:
    return a - b if isinstance(a, int) and isinstance(b, int) else None


def _div(a: Entry, b: Entry) -> Entry:
    return a // b if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0 else None


def _equal(a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if a is None or b is None:
        return None
    if _negative(a) or _negative(b):
        return False
    return True if a == b else None


def _where(condition: Entry, a: Entry, b: Entry) -> Entry:
    return (a if condition else b) if isinstance(condition, (bool, int)) else None


_EVALUATORS: dict[str, Callable[[gs.Node], list[Entry] | None]] = {
    "Shape": _shape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _same,
    "Identity": _same,
    "Reshape": _reshape,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "ConstantOfShape": _constant_of_shape,
    "Mul": _elementwise(product),
    "Add": _elementwise(_add),
    "Sub": _elementwise(_sub),
    "Div": _elementwise(_div),
    "Equal": _elementwise(_equal),
    "Where": _elementwise(_where),
}
