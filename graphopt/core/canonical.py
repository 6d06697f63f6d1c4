"""What schemes and calibration see of the canonical form: linears, by name.

The canonical ops themselves are defined in passes/canonicalize/ops.py; schemes must not import another pass folder, so
the little that they all need to know about a linear is here.
"""

__all__ = ["LINEAR_OPS", "InputQuantizer", "LinearView", "assigned", "bias_of", "inner_linears", "linears"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.errors import InternalError
from graphopt.ir import query, weights
from graphopt.ir.model import Model

#: Linear(x, w) and LinearBias(x, w, bias); attribute trans_w: 0 for w [K, N], 1 for w [N, K].
LINEAR_OPS = ("Linear", "LinearBias")
_FLOATS = {"float32", "float16", "bfloat16"}
C = TypeVar("C")


@dataclass(frozen=True)
class LinearView:
    """A canonical linear y = x W (+ bias), seen independently of how its weight is stored."""

    node: gs.Node

    @property
    def name(self) -> str:
        """The node's name: what recipes and statistics call the linear."""
        return str(self.node.name)

    @property
    def x(self) -> gs.Tensor:
        """Input (..., K)."""
        return self.node.inputs[0]

    @property
    def weight(self) -> gs.Tensor:
        """Weight tensor as stored: (K, N), or (N, K) if `transposed`."""
        return self.node.inputs[1]

    @property
    def bias(self) -> gs.Tensor | None:
        """Bias (N,), or None."""
        return self.node.inputs[2] if self.node.op == "LinearBias" else None

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (N, K)."""
        return bool(self.node.attrs.get("trans_w", 0))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = (int(d) for d in self.weight.shape)
        return (rows, columns) if self.transposed else (columns, rows)

    def refusal(self) -> str | None:
        """Why no scheme can lower the linear, as the end of a sentence; None if one can."""
        weight = self.weight
        if not isinstance(weight, gs.Constant):
            return f"weight '{weight.name}' is not a constant"
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"weight '{weight.name}' has shape {list(weight.shape)}"
        dtype = str(weights.numpy_dtype(weights.onnx_dtype(weight.dtype)))
        if dtype not in _FLOATS:
            return f"weight '{weight.name}' is {dtype}, not a float type"
        others = [n for n in query.consumers(weight) if n is not self.node]
        if others:
            return f"weight '{weight.name}' is shared with node '{others[0].name}' ({others[0].op})"
        return None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return output channels ``start`` to ``stop`` of the weight as (stop - start, K), in its own dtype."""
        stored = weights.read(self.weight)
        return np.asarray(stored[start:stop] if self.transposed else stored[:, start:stop].T)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process a linear has its name and its weight, and no graph around it."""
        return _alone, (self.name, self.transposed, self.weight.name, weights.detached(self.weight))


def _alone(name: str, transposed: bool, weight: str, values: Any) -> LinearView:
    inputs = [gs.Variable("x"), gs.Constant(weight, values)]
    return LinearView(gs.Node("Linear", name, {"trans_w": int(transposed)}, inputs, domain=DOMAIN))


#: Inserts an op that quantizes the common input of some linears to int8 per token, fused into its producer where that
#: is possible; returns codes (..., K) int8 and scales (..., 1) float32. The linears are still in the graph.
InputQuantizer = Callable[[Model, Sequence[LinearView]], tuple[gs.Tensor, gs.Tensor]]


def linears(model: Model) -> list[LinearView]:
    """Return the canonical linears of the main graph, in graph order."""
    return [LinearView(n) for n in model.graph.nodes if query.is_op(n, *LINEAR_OPS, domain=DOMAIN)]


def inner_linears(model: Model) -> list[LinearView]:
    """Return the canonical linears of the branches of Ifs and the bodies of loops, which no scheme lowers."""
    inner = [g for g in model.all_graphs() if g is not model.graph]
    return [LinearView(n) for g in inner for n in g.nodes if query.is_op(n, *LINEAR_OPS, domain=DOMAIN)]


def assigned(
    model: Model, assignment: Mapping[str, C], report: Report, *, stage: str, scheme: str
) -> list[tuple[LinearView, C]]:
    """Return the linears that ``assignment`` names and a scheme can lower, with their settings, in graph order.

    The others that it names are reported as skipped, with the reason.
    """
    found = []
    for linear in linears(model):
        if linear.name not in assignment:
            continue
        if reason := linear.refusal():
            report.skipped(stage, scheme, linear.name, reason)
        else:
            found.append((linear, assignment[linear.name]))
    return found


def bias_of(model: Model, linear: LinearView) -> gs.Tensor:
    """Return the bias (N,) of ``linear``; where it has none, zeros of the type of its weight.

    Raises:
        InternalError: the bias has another shape.
    """
    n, bias = linear.shape[0], linear.bias
    if bias is None:
        kind = weights.numpy_dtype(weights.onnx_dtype(linear.weight.dtype))
        return model.store.put(model.unique_name(f"{linear.weight.name}_bias"), np.zeros(n, kind))
    if list(bias.shape or []) != [n]:
        raise InternalError(f"bias of '{linear.name}' has shape {bias.shape}, canonical form promises [{n}]")
    return bias
