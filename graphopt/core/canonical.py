"""What schemes and calibration see of the canonical form: linears, by name.

The canonical ops themselves are defined in passes/canonicalize/ops.py; schemes must not import another pass folder, so
the little that they all need to know about a linear is here.
"""

__all__ = ["LINEAR_OPS", "InputQuantizer", "LinearView", "linears"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.ir import query, weights
from graphopt.ir.model import Model

#: Linear(x, w) and LinearBias(x, w, bias); attribute trans_w: 0 for w [K, N], 1 for w [N, K].
LINEAR_OPS = ("Linear", "LinearBias")
_FLOATS = {"float32", "float16", "bfloat16"}


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


#: Inserts an op that quantizes the common input of some linears to int8 per token, fused into its producer where that
#: is possible; returns codes (..., K) int8 and scales (..., 1) float32. The linears are still in the graph.
InputQuantizer = Callable[[Model, Sequence[LinearView]], tuple[gs.Tensor, gs.Tensor]]


def linears(model: Model) -> list[LinearView]:
    """Return the canonical linears of the main graph, in graph order."""
    return [LinearView(n) for n in model.graph.nodes if query.is_op(n, *LINEAR_OPS, domain=DOMAIN)]
