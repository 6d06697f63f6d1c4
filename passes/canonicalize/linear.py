"""Products with a constant matrix -> Linear and LinearBias.

    MatMul(x, W)                          -> Linear(x, W)              W (K, N)
    MatMul(x, Transpose(W))               -> Linear(x, W; trans_w)     W (N, K), as stored
    Gemm(x, W, c?; transB)                -> Linear or LinearBias
    Einsum(x, W; "bsk,kn->bsn")           -> Linear(x, W; trans_w)     either order of W's axes and of the operands
    Add(Linear(x, W), b), b constant      -> LinearBias(x, W, b)

A weight that is read twice, transposed and not (a tied embedding), stays one tensor: ``trans_w`` says how each linear
reads it. Visits the main graph and its subgraphs.
"""

__all__ = ["BIAS_RULES", "RULES"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import place
from graphopt.core.rule import Refusal, Rule
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.canonicalize import ops
from graphopt.passes.canonicalize.naming import canonical_name

_FLOATS = {"float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class _Linear:
    node: gs.Node
    x: gs.Tensor
    w: gs.Tensor
    trans_w: int
    bias: gs.Tensor | None = None


def _stored(tensor: gs.Tensor) -> tuple[gs.Tensor, int]:
    """Return the tensor that a weight operand is stored as, and 1 if it is read through a transpose."""
    node = query.producer(tensor)
    if query.is_op(node, "Transpose") and node is not None and query.is_constant(node.inputs[0]):
        rank = len(node.inputs[0].shape)
        perm = node.attrs.get("perm", list(range(rank))[::-1])
        if rank == 2 and list(perm) == [1, 0]:
            return node.inputs[0], 1
    return tensor, 0


def _weight_refusal(w: gs.Constant) -> str | None:
    if len(w.shape) != 2:
        return f"weight '{w.name}' has rank {len(w.shape)}, a linear's has rank 2"
    if 0 in w.shape:
        return f"weight '{w.name}' has shape {list(w.shape)}"
    name = str(weights.numpy_dtype(weights.onnx_dtype(w.dtype)))
    return None if name in _FLOATS else f"weight '{w.name}' is {name}, not float32, float16 or bfloat16"


def _quantized(w: gs.Tensor) -> Refusal | None:
    """The refusal of a product whose weight ``w`` another tool has quantized; None of others."""
    maker = query.producer(_stored(w)[0])
    if query.is_op(maker, "Transpose"):
        maker = query.producer(maker.inputs[0])
    if query.is_op(maker, "DequantizeLinear") and query.is_constant(maker.inputs[0]):
        return Refusal(f"weight '{maker.inputs[0].name}' is already quantized (DequantizeLinear '{maker.name}')")
    return None


class MatMulRule(Rule):
    """MatMul(x, W) -> Linear."""

    name = "linear-matmul"
    anchors = ("MatMul",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "MatMul"):
            return None
        x, (w, trans_w) = node.inputs[0], _stored(node.inputs[1])
        if not isinstance(w, gs.Constant):
            return self._near_miss(node)
        if query.is_constant(x):
            return None
        if reason := _weight_refusal(w):
            return Refusal(reason)
        if x.shape is not None and len(x.shape) < 2:
            return Refusal(f"input '{x.name}' has rank {len(x.shape)}, a linear's has rank 2 or more")
        if any(t is w for t in graph.outputs):
            return Refusal(f"weight '{w.name}' is an output of the graph")
        return _Linear(node, x, w, trans_w)

    @staticmethod
    def _near_miss(node: gs.Node) -> Refusal | None:
        left = node.inputs[0]
        if isinstance(left, gs.Constant) and len(left.shape) == 2:
            return Refusal(f"the constant '{left.name}' is the left operand")
        return _quantized(node.inputs[1])

    def rewrite(self, model: Model, graph: gs.Graph, match: _Linear) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node)
        place(graph, ops.LINEAR, name, [match.x, match.w], match.node, trans_w=match.trans_w)
        return f"Linear '{name}'"


class GemmRule(Rule):
    """Gemm with a constant B -> Linear or LinearBias."""

    name = "linear-gemm"
    anchors = ("Gemm",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Gemm"):
            return None
        x, w, *rest = node.inputs
        w, transposed = _stored(w)
        if not isinstance(w, gs.Constant):
            return _quantized(w)
        if query.is_constant(x):
            return None
        if reason := _weight_refusal(w):
            return Refusal(reason)
        bias = rest[0] if rest and not rest[0].is_empty() else None
        if node.attrs.get("transA", 0):
            return Refusal("transA is set")
        if node.attrs.get("alpha", 1.0) != 1.0 or (bias is not None and node.attrs.get("beta", 1.0) != 1.0):
            return Refusal(f"alpha is {node.attrs.get('alpha', 1.0)}, beta is {node.attrs.get('beta', 1.0)}, not 1")
        trans_w = node.attrs.get("transB", 0) ^ transposed
        n = w.shape[0] if trans_w else w.shape[1]
        if bias is not None and (not query.is_constant(bias) or list(bias.shape) != [n]):
            return Refusal(f"C '{bias.name}' is not a constant of shape [{n}]")
        return _Linear(node, x, w, trans_w, bias)

    def rewrite(self, model: Model, graph: gs.Graph, match: _Linear) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node)
        inputs, spec = [match.x, match.w], ops.LINEAR
        if match.bias is not None:
            inputs, spec = [*inputs, match.bias], ops.LINEAR_BIAS
        place(graph, spec, name, inputs, match.node, trans_w=match.trans_w)
        return f"{spec.name} '{name}'"


class EinsumRule(Rule):
    """Einsum of an activation with a constant matrix, over the activation's last axis -> Linear."""

    name = "linear-einsum"
    anchors = ("Einsum",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Einsum") or len(node.inputs) != 2:
            return None
        equation = str(node.attrs["equation"]).replace(" ", "")
        operands = list(zip(equation.split("->")[0].split(","), node.inputs, strict=True))
        if isinstance(node.inputs[0], gs.Constant):
            operands.reverse()
        (of_x, x), (of_w, w) = operands
        if not isinstance(w, gs.Constant):
            return _quantized(w)
        if query.is_constant(x):
            return None
        lead, k = of_x[:-1], of_x[-1:]
        n = of_w.replace(k, "", 1)
        axes = lead.replace("...", "") + k + n
        plain = len(of_w) == 2 and k in of_w and axes.isalpha() and len(set(axes)) == len(axes)
        if not plain or not lead or not equation.endswith(f"->{lead}{n}"):
            return Refusal(f"equation '{equation}' is no product of the last axis of '{x.name}' with a matrix")
        if x.shape is not None and len(x.shape) < 2:
            return Refusal(f"input '{x.name}' has rank {len(x.shape)}, a linear's has rank 2 or more")
        if reason := _weight_refusal(w):
            return Refusal(reason)
        return _Linear(node, x, w, int(of_w.endswith(k)))

    def rewrite(self, model: Model, graph: gs.Graph, match: _Linear) -> str:
        """See `Rule.rewrite`."""
        name = canonical_name(model, match.node)
        place(graph, ops.LINEAR, name, [match.x, match.w], match.node, trans_w=match.trans_w)
        return f"Linear '{name}'"


class BiasRule(Rule):
    """Add(Linear(x, W), b) -> LinearBias, under the name of the Linear."""

    name = "linear-bias"
    anchors = ("Add",)

    def match(self, model: Model, graph: gs.Graph, node: gs.Node) -> Any:
        """See `Rule.match`."""
        if not query.is_op(node, "Add"):
            return None
        for product, bias in (node.inputs, node.inputs[::-1]):
            linear = query.producer(product)
            if linear is None or not ops.LINEAR.is_node(linear) or not isinstance(bias, gs.Constant):
                continue
            if query.sole_consumer(graph, product) is not node:
                return Refusal(f"the product '{product.name}' is also read without bias '{bias.name}'", linear.name)
            w, trans_w = linear.inputs[1], linear.attrs["trans_w"]
            n = w.shape[0] if trans_w else w.shape[1]
            if list(bias.shape)[-1:] != [n] or int(np.prod(bias.shape, dtype=np.int64)) != n:
                return Refusal(f"'{bias.name}' of shape {list(bias.shape)} is no bias of {n} channels", linear.name)
            if len(bias.shape) > 1 and (product.shape is None or len(bias.shape) > len(product.shape)):
                return Refusal(f"'{bias.name}' of shape {list(bias.shape)} may widen the product", linear.name)
            return _Linear(node, linear.inputs[0], w, trans_w, bias)
        return None

    def rewrite(self, model: Model, graph: gs.Graph, match: _Linear) -> str:
        """See `Rule.rewrite`."""
        assert match.bias is not None
        linear = next(n for t in match.node.inputs for n in t.inputs if ops.LINEAR.is_node(n))
        name, bias = linear.name, match.bias
        if len(bias.shape) != 1:
            bias = gs.Constant(model.unique_name(f"{bias.name}_flat"), weights.read(bias).reshape(-1))
        # The Linear is dead from here on; it must not keep the name that its successor takes over.
        linear.outputs.clear()
        linear.name = f"{name}_without_bias"
        place(graph, ops.LINEAR_BIAS, name, [match.x, match.w, bias], match.node, trans_w=match.trans_w)
        return f"LinearBias '{name}'"


RULES = (MatMulRule(), GemmRule(), EinsumRule())
#: Looks at Linear nodes, so it runs after all of them exist.
BIAS_RULES = (BiasRule(),)
