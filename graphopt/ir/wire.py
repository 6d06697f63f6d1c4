"""Parse an ONNX file without its inline weights.

protobuf reads a file as a whole and keeps every byte of it for as long as any message of it is in use. `read` walks
the wire format instead (https://protobuf.dev/programming-guides/encoding) and leaves out every long ``raw_data``: the
tensor that had it refers to its bytes inside the .onnx file, in the way in which ONNX refers to external data.
"""

__all__ = ["read"]

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from graphopt.ir.weights import INLINE_BYTES, set_external_info

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Kind:
    """Which fields of a message hold messages that may hold tensors."""

    children: dict[int, "_Kind"] = field(default_factory=dict)


def _number(message: type, name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)  # type: ignore[attr-defined]


_RAW_DATA = _number(onnx.TensorProto, "raw_data")
_TENSOR, _GRAPH = _Kind(), _Kind()
_ATTRIBUTE = _Kind(
    {_number(onnx.AttributeProto, n): k for n, k in (("t", _TENSOR), ("tensors", _TENSOR), ("g", _GRAPH))}
)
_NODE = _Kind({_number(onnx.NodeProto, "attribute"): _ATTRIBUTE})
_GRAPH.children.update({_number(onnx.GraphProto, "node"): _NODE, _number(onnx.GraphProto, "initializer"): _TENSOR})
_FUNCTION = _Kind({_number(onnx.FunctionProto, "node"): _NODE})
_MODEL = _Kind({_number(onnx.ModelProto, "graph"): _GRAPH, _number(onnx.ModelProto, "functions"): _FUNCTION})


def read(path: Path) -> onnx.ModelProto:
    """Return the model in ``path``; raw data of more than ``INLINE_BYTES`` becomes a reference into the file itself.

    Raises:
        DecodeError: the file is not a serialized ModelProto, or it is truncated.
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        raise DecodeError("the file is empty")
    view = np.memmap(path, np.uint8, "r").data
    parts = list(_without_weights(view, 0, len(view), _MODEL, str(path.resolve())))
    model = onnx.ModelProto()
    model.ParseFromString(b"".join(parts))
    return model


def _without_weights(view: memoryview, start: int, end: int, kind: _Kind, path: str) -> Iterator[bytes | memoryview]:
    """Yield the serialized message ``view[start:end]`` in pieces, without long raw data."""
    references = b""
    for number, begin, payload, stop in _fields(view, start, end):
        if stop - payload <= INLINE_BYTES:
            yield view[begin:stop]
        elif kind is _TENSOR and number == _RAW_DATA:
            reference = onnx.TensorProto()
            set_external_info(reference, path, payload, stop - payload)
            references += reference.SerializeToString()
        elif number in kind.children:
            inner = b"".join(_without_weights(view, payload, stop, kind.children[number], path))
            yield _varint_bytes(number << 3 | _BYTES) + _varint_bytes(len(inner))
            yield inner
        else:
            yield view[begin:stop]
    # Last, because the later of two values counts, and a tensor may itself say that its data is not external.
    yield references


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield ``(field number, start of the field, start of its payload, end)`` for the message ``view[start:end]``."""
    at = start
    while at < end:
        tag, payload = _varint(view, at, end)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, payload = _varint(view, payload, end)
            stop = payload + length
        elif wire_type == _VARINT:
            _, stop = _varint(view, payload, end)
        elif wire_type in (_FIXED64, _FIXED32):
            stop = payload + (8 if wire_type == _FIXED64 else 4)
        else:
            raise DecodeError(f"wire type {wire_type} at byte {at}")
        if stop > end:
            raise DecodeError(f"the field at byte {at} ends at {stop}, after the end {end}")
        yield tag >> 3, at, payload, stop
        at = stop


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the base-128 number at ``at`` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DecodeError(f"no number ends at byte {at}")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
