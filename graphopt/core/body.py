"""`BodyBuilder`: writes the nodes of a function body, hiding what changed between opsets."""

__all__ = ["BodyBuilder", "shared"]

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt.numerics.packing import PACK_STEP


class BodyBuilder:
    """Collects the nodes of one FunctionProto.

    Args:
        opset: version of the standard operator set that the body is written in.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, outputs: int | Sequence[str] = 1, **attrs: Any) -> Any:
        """Append a node; return its output name, or a list of names if it has several outputs."""
        if isinstance(outputs, int):
            stem = f"{op_type.lower()}_{len(self.nodes)}"
            names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        else:
            names = list(outputs)
        # TensorRT's parser wants names that stay unique when the body is inlined: it prefixes nothing by itself.
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=names[0], **attrs))
        return names[0] if len(names) == 1 else names

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """Append a constant of ``dtype`` (default float32) and return its name."""
        tensor = numpy_helper.from_array(np.array(value, dtype))
        name: str = self.op("Constant", value=tensor)
        return name

    def ints(self, *values: int) -> str:
        """Append a constant vector of int64."""
        return self.const(list(values), np.int64)

    def size(self, tensor: str, axis: int) -> str:
        """Append what makes a dimension of ``tensor`` a value of shape [1]."""
        name: str = self.op("Gather", self.op("Shape", tensor), self.ints(axis), axis=0)
        return name

    def range(self, count: str) -> str:
        """Append 0, 1, ... below ``count`` of shape [1], int64."""
        stop = self.op("Squeeze", count, self.ints(0))
        name: str = self.op("Range", self.const(0, np.int64), stop, self.const(1, np.int64))
        return name

    def attribute(self, name: str, kind: int = onnx.AttributeProto.FLOAT) -> str:
        """Append a constant whose value is the node's attribute ``name`` (FLOAT or INT)."""
        out: str = self.op("Constant")
        key = "value_float" if kind == onnx.AttributeProto.FLOAT else "value_int"
        self.nodes[-1].attribute.add(name=key, ref_attr_name=name, type=kind)
        return out

    def cast(self, x: str, to: int = onnx.TensorProto.FLOAT) -> str:
        """Append ``Cast``; float32 by default."""
        name: str = self.op("Cast", x, to=to)
        return name

    def cast_like(self, x: str, like: str, out: str | None = None) -> str:
        """Append ``CastLike``."""
        name: str = self.op("CastLike", x, like, outputs=[out] if out else 1)
        return name

    def reduce(self, kind: str, x: str, axis: int, *, keepdims: int = 1) -> str:
        """Append ``Reduce<kind>`` over one axis: an attribute before opset 18 (13 for Sum), an input since."""
        if self.opset >= (13 if kind == "Sum" else 18):
            name: str = self.op(f"Reduce{kind}", x, self.const([axis], np.int64), keepdims=keepdims)
        else:
            name = self.op(f"Reduce{kind}", x, axes=[axis], keepdims=keepdims)
        return name

    def first(self, x: str, out: str | None = None) -> str:
        """Append a Slice that makes the last dimension 1, which it is already after a reduction over it.

        Except in ONNX Runtime where there are no tokens: it does not reduce tensors without elements, so that the
        result is as wide as the input and fits nothing that is not.
        """
        bounds = [self.const([i], np.int64) for i in (0, 1, -1)]
        name: str = self.op("Slice", x, *bounds, outputs=[out] if out else 1)
        return name

    def unpack_int4(self, packed: str, *, signed: bool = True) -> str:
        """Append what takes `graphopt.numerics.packing.pack_int4` back, padding included, as float32.

        Args:
            packed: (..., B) int8.
            signed: whether the codes are -8..7 or 0..15.

        Returns:
            (..., 2B).
        """
        byte = self.op("DequantizeLinear", packed, self.const(1.0), self.const(0, np.int8))
        sixteen, last = self.const(16.0), self.const([-1], np.int64)

        def floored(x: str, divisor: int) -> str:
            name: str = self.op("Floor", self.op("Mul", x, self.const(1 / divisor)))
            return name

        def wrapped(x: str, divisor: int) -> str:
            name: str = self.op("Sub", x, self.op("Mul", floored(x, divisor), sixteen))
            return name

        # A byte is -128..127, so its floored sixteenth is the upper nibble with its sign.
        high, nibble = floored(byte, 16), wrapped(byte, 16)
        low = wrapped(nibble, 8) if signed else nibble
        if not signed:
            high = wrapped(high, 16)
        shape = self.op("Shape", byte)
        lead, count = self.op("Slice", shape, self.const([0], np.int64), last), self.op("Gather", shape, last, axis=0)
        half = self.const([PACK_STEP // 2], np.int64)
        vectors = self.op("Concat", lead, self.op("Div", count, half), half, axis=0)
        halves = self.op("Concat", self.op("Reshape", low, vectors), self.op("Reshape", high, vectors), axis=-1)
        size = self.op("Mul", count, self.const([2], np.int64))
        codes: str = self.op("Reshape", halves, self.op("Concat", lead, size, axis=0))
        return codes

    def output(self, x: str, name: str) -> None:
        """Give the value ``x`` the function's output name ``name``."""
        self.op("Identity", x, outputs=[name])


def shared(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Return ``nodes`` with equal ones written once: a body asks for a constant or a shape wherever it needs it.

    Bodies with subgraphs stay as they are, and so do the nodes that give the function's ``outputs``.
    """
    if any(a.HasField("g") for node in nodes for a in node.attribute):
        return list(nodes)
    kept: list[onnx.NodeProto] = []
    known: dict[tuple[object, ...], str] = {}
    replaced: dict[str, str] = {}
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = replaced.get(name, name)
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        key = (node.op_type, *node.input, *attributes)
        if len(node.output) == 1 and node.output[0] not in outputs:
            if key in known:
                replaced[node.output[0]] = known[key]
                continue
            known[key] = node.output[0]
        kept.append(node)
    return kept
