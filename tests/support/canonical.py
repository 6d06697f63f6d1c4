"""A small canonical model whose linear inputs are known."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.core.op import attach_bodies
from graphopt.passes.canonicalize import ops
from tests.support.arrays import weight


@dataclass
class CanonicalMlp:
    """q = x Wq, k = x Wkᵀ + b, y = relu(q) Wo: linears 'q' and 'k' share x, 'o' reads relu(q)."""

    model: ir.Model
    wq: np.ndarray  # (24, 40)

    @classmethod
    def random(cls, rng: np.random.Generator) -> "CanonicalMlp":
        """Build it with random weights."""
        wq, wk, wo, bk = weight(rng, 24, 40), weight(rng, 16, 24), weight(rng, 40, 8), weight(rng, 16)
        sizes = {"x": 24, "q": 40, "k": 16, "r": 40, "y": 8}
        x, q, k, r, y = (gs.Variable(n, np.float32, ["batch", "tokens", size]) for n, size in sizes.items())
        nodes = [
            ops.LINEAR.node("q", [x, gs.Constant("wq", wq)], [q]),
            ops.LINEAR_BIAS.node("k", [x, gs.Constant("wk", wk), gs.Constant("bk", bk)], [k], trans_w=1),
            gs.Node("Relu", "relu", inputs=[q], outputs=[r]),
            ops.LINEAR.node("o", [r, gs.Constant("wo", wo)], [y]),
        ]
        graph = gs.Graph(nodes, [x], [k, y], opset=18, import_domains=[onnx.helper.make_opsetid("", 18)])
        model = ir.Model(graph)
        attach_bodies(model, ops.OPS)
        return cls(model, wq)

    def inputs(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Return the input of each linear, (rows, K) float64."""
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)
        return {"q": x, "k": x, "o": np.maximum(x @ self.wq, 0)}
