"""`Model`: one ONNX model in memory, without its weights."""

__all__ = ["MAX_OPSET", "MIN_OPSET", "Model"]

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.carry import imported_graphs
from graphopt.ir.dead import remove_dead
from graphopt.ir.order import sort_nodes
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
        functions: model-local functions whose calls stay, untouched FunctionProtos.
        path: where the model was loaded from, or None for a model built in memory.
        store: where passes put the tensors that they make.
    """

    graph: gs.Graph
    shell: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    path: Path | None = None
    store: WeightStore = field(default_factory=WeightStore)
    _names: set[str] = field(default_factory=set, init=False, repr=False)
    _numbers: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operator set that the model imports."""
        return int(self.graph.opset)

    def knows(self, name: str) -> bool:
        """Whether a tensor or node of any graph has ``name``, or `unique_name` has given it out."""
        self._collect()
        return name in self._names

    def unique_name(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ``base_2``, ... : a name that no tensor or node of any graph has.

        Names are collected at the first call after `tidy`; later calls know the names that were given out since.
        """
        self._collect()
        name = base
        while name in self._names:
            self._numbers[base] = number = self._numbers.get(base, 0) + 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def _collect(self) -> None:
        if not self._names:
            for graph in self.all_graphs():
                self._names.update(graph.tensors(), (n.name for n in graph.nodes))

    def all_graphs(self) -> Iterator[gs.Graph]:
        """Yield the main graph, then every nested subgraph, in node order and depth first."""
        yield from imported_graphs(self.graph)

    def tidy(self) -> None:
        """Remove nodes that contribute to no output, and sort the rest: producers first, else in the order they had."""
        remove_dead(self.graph)
        sort_nodes(self.graph)
        self._names.clear()
        self._numbers.clear()
