"""What a build needs to know of the ONNX file itself: that it is sound, its digest, and its custom nodes."""

__all__ = ["CustomOps", "count_custom_ops", "read"]

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphopt import ir
from graphopt.engine.digest import sha256
from graphopt.engine.manifest import ExternalData, Source
from graphopt.engine.plugins import NAMESPACE
from graphopt.ir.walk import all_nodes, subgraphs

_PLUGIN_NAMESPACE = "plugin_namespace"
#: How the keys of what graphopt says about a model start.
_METADATA = "graphopt."


@dataclass(frozen=True)
class CustomOps:
    """Nodes of our domain.

    Attributes:
        counts: nodes of each op that wants a plugin, those in subgraphs and in every call of a local function included.
        example: name of the first node of each op that wants a plugin.
        plain: the ops that want none: their function bodies are what runs.
    """

    counts: Counter[str]
    example: dict[str, str]
    plain: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Number of nodes, and so of plugin layers to expect."""
        return self.counts.total()


def read(path: Path) -> tuple[Source, CustomOps]:
    """Check the ONNX file as `graphopt.ir.load` does, before TensorRT sees it, and describe it.

    Raises:
        ModelError: see `graphopt.ir.load`.
    """
    ir.load(path)
    proto = onnx.load(path, load_external_data=False)
    locations = sorted({ExternalDataInfo(t).location for t in _tensors(proto) if uses_external_data(t)})
    source = Source(
        path=str(path.resolve()),
        sha256=sha256(path),
        external_data=tuple(ExternalData(name, (path.parent / name).stat().st_size) for name in locations),
        metadata={p.key: p.value for p in proto.metadata_props if p.key.startswith(_METADATA)},
    )
    return source, count_custom_ops(proto)


def count_custom_ops(model: onnx.ModelProto) -> CustomOps:
    """Count the nodes of domain ``graphopt`` that carry ``plugin_namespace``, and name the ops of those that do not.

    Visits the main graph, its subgraphs, and the bodies of local functions once per call; not the bodies of the counted
    nodes themselves, which their plugins replace.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    found = CustomOps(Counter(), {})
    plain: set[str] = set()

    def count(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in all_nodes(nodes):
            if node.domain == NAMESPACE and any(a.name == _PLUGIN_NAMESPACE for a in node.attribute):
                found.counts[node.op_type] += 1
                found.example.setdefault(node.op_type, node.name)
            elif (node.domain, node.op_type) in functions:
                if node.domain == NAMESPACE:
                    plain.add(node.op_type)
                count(functions[node.domain, node.op_type].node)

    count(model.graph.node)
    return replace(found, plain=frozenset(plain))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in all_nodes(nodes):
            for graph in subgraphs(node):
                yield from graph.initializer
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
