"""`Model`: one ONNX model in memory, without its weights."""

__all__ = ["MAX_OPSET", "MIN_OPSET", "Model"]

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.weights import WeightStore

#: The oldest opset accepted: CastLike, which function bodies need to follow the activation type, exists since 15.
MIN_OPSET = 15
#: The newest opset accepted: what the installed onnx package defines.
MAX_OPSET: int = onnx.defs.onnx_opset_version()


@dataclass
class Model:
    """An ONNX model whose big tensors stay on disk.

    Attributes:
        graph: the main graph (subgraphs hang off node attributes). Nodes carry ``metadata: dict[str, str]``.
        shell: the ModelProto without its graph and functions: everything graphsurgeon does not carry
            (metadata, producer, IR version, training info).
        functions: model-local functions, untouched FunctionProtos.
        path: where the model was loaded from, or None for a model built in memory.
        store: where passes put the tensors that they make.
    """

    graph: gs.Graph
    shell: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    path: Path | None = None
    store: WeightStore = field(default_factory=WeightStore)

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operator set that the model imports."""
        return int(self.graph.opset)

    def unique_name(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ``base_2``, ... : a name that no tensor or node of the main graph has."""
        taken = {n.name for n in self.graph.nodes} | set(self.graph.tensors())
        if base not in taken:
            return base
        return next(name for i in range(1, len(taken) + 2) if (name := f"{base}_{i}") not in taken)

    def all_graphs(self) -> Iterator[gs.Graph]:
        """Yield the main graph, then every nested subgraph."""
        yield self.graph
        yield from self.graph.subgraphs(recursive=True)
