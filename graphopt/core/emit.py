"""Writing nodes: a canonical node takes over the very output tensor of the pattern that it replaces."""

__all__ = ["Emitter", "element_type", "place", "take_outputs"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.op import OpSpec
from graphopt.ir import weights
from graphopt.ir.model import Model


def element_type(tensor: gs.Tensor) -> int | None:
    """Return the ONNX element type of ``tensor``; None if it is not known."""
    return None if tensor.dtype is None else weights.onnx_dtype(tensor.dtype)


def take_outputs(node: gs.Node) -> list[gs.Tensor]:
    """Detach the outputs of ``node``, which thereby is dead, and return them (omitted ones included)."""
    outputs = list(node.outputs)
    node.outputs.clear()
    return outputs


def place(graph: gs.Graph, spec: OpSpec, name: str, inputs: Sequence[gs.Tensor], old: gs.Node, **attrs: Any) -> gs.Node:
    """Append a canonical node that gives the first output of ``old`` in its place."""
    output = take_outputs(old)[0]
    node = spec.node(name, inputs, [output], **attrs)
    node.metadata = dict(getattr(old, "metadata", {}))
    graph.nodes.append(node)
    return node


class Emitter:
    """Appends standard nodes to a graph under a common stem.

    Args:
        model: for its opset.
        graph: gets the nodes.
        stem: prefix of all names; the name of the node that is replaced, hence unique.
    """

    def __init__(self, model: Model, graph: gs.Graph, stem: str) -> None:
        self.model = model
        self.graph = graph
        self.stem = stem

    def _name(self, what: str) -> str:
        return self.model.unique_name(f"{self.stem}/{what}")

    def op(
        self,
        op: str,
        *inputs: gs.Tensor,
        like: gs.Tensor | None = None,
        dtype: Any = None,
        shape: Sequence[Any] | None = None,
        out: gs.Tensor | None = None,
        **attrs: Any,
    ) -> gs.Tensor:
        """Append a node and return its output.

        Args:
            op: operator of the standard domain.
            inputs: in order; `gs.Variable.empty()` for an omitted one.
            like: tensor that the output has the dtype and shape of.
            dtype: of the output, where ``like`` does not say it.
            shape: of the output, where ``like`` does not say it.
            out: an existing tensor to be the output.
            attrs: of the node.
        """
        name = self._name(op)
        if out is None:
            if like is not None:
                dtype, shape = like.dtype, like.shape
            # A tensor must not share its node's name: other rules look both up in one set.
            out = gs.Variable(self.model.unique_name(f"{name}_output"), dtype, None if shape is None else list(shape))
        self.graph.nodes.append(gs.Node(op, name, attrs, list(inputs), [out]))
        return out

    def const(self, values: Any, dtype: Any = np.int64) -> gs.Constant:
        """Return a small constant; ``dtype`` may be a numpy dtype or an ONNX element type."""
        if isinstance(dtype, int):
            dtype = weights.numpy_dtype(dtype)
        return gs.Constant(self._name("const"), np.array(values, dtype))

    def dims(self, tensor: gs.Tensor, start: int, stop: int) -> gs.Tensor:
        """Return dimensions ``start`` to ``stop`` of ``tensor`` as an int64 vector."""
        if self.model.opset >= 15:
            return self.op("Shape", tensor, dtype=np.int64, shape=[stop - start], start=start, end=stop)
        every = self.op("Shape", tensor, dtype=np.int64)
        return self.op("Slice", every, self.const([start]), self.const([stop]), dtype=np.int64, shape=[stop - start])

    def reshape(self, tensor: gs.Tensor, target: Sequence[int]) -> gs.Tensor:
        """Reshape; 0 keeps a dimension, -1 infers one."""
        lead = list(tensor.shape) if tensor.shape is not None else None
        shape = [
            d if d > 0 else (lead[i] if d == 0 and lead is not None and i < len(lead) else None)
            for i, d in enumerate(target)
        ]
        return self.op("Reshape", tensor, self.const(target), dtype=tensor.dtype, shape=shape)

    def transpose(self, tensor: gs.Tensor, perm: Sequence[int]) -> gs.Tensor:
        """Permute dimensions."""
        shape = None if tensor.shape is None else [tensor.shape[p] for p in perm]
        return self.op("Transpose", tensor, dtype=tensor.dtype, shape=shape, perm=list(perm))

    def split_heads(self, x: gs.Tensor, size: int) -> gs.Tensor:
        """(B, S, H·D) -> (B, H, S, D), D being ``size``."""
        heads = int(x.shape[-1]) // size
        return self.transpose(self.reshape(x, [0, 0, heads, size]), [0, 2, 1, 3])

    def join_heads(self, x: gs.Tensor, heads: int, size: int, out: gs.Tensor) -> None:
        """(B, H, S, D) -> (B, S, H·D) as the existing tensor ``out``."""
        joined = self.transpose(x, [0, 2, 1, 3])
        self.op("Reshape", joined, self.const([0, 0, heads * size]), out=out)

    def unsqueeze(self, tensor: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Insert dimensions of 1 (opset 13 and newer: axes are an input)."""
        shape = None
        if tensor.shape is not None:
            shape = list(tensor.shape)
            for axis in sorted(axes):
                shape.insert(axis, 1)
        return self.op("Unsqueeze", tensor, self.const(axes), dtype=tensor.dtype, shape=shape)
