"""Topological order of a graph that keeps the order of its nodes wherever that is one already.

graphsurgeon's own sort goes by levels (all first nodes of all layers, then all second ones), which scatters a layer
over the whole graph, and it recurses once per node.
"""

__all__ = ["sort_nodes"]

import heapq

import onnx_graphsurgeon as gs

from graphopt.errors import InternalError
from graphopt.ir import query


def sort_nodes(graph: gs.Graph) -> None:
    """Sort the nodes of ``graph`` and its subgraphs in place.

    Raises:
        InternalError: the graph has a cycle.
    """
    makers = {id(t): i for i, node in enumerate(graph.nodes) for t in node.outputs if t.name}
    waits = [0] * len(graph.nodes)
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for i, node in enumerate(graph.nodes):
        for maker in {makers[id(t)] for t in query.reads(node) if id(t) in makers}:
            waits[i] += 1
            readers[maker].append(i)
        for sub in node.subgraphs():
            sort_nodes(sub)
    ready = [i for i, count in enumerate(waits) if not count]
    order: list[gs.Node] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.nodes[i])
        for reader in readers[i]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.nodes):
        stuck = next(graph.nodes[i].name for i, count in enumerate(waits) if count)
        raise InternalError(f"graph '{graph.name}' has a cycle through node '{stuck}'")
    graph.nodes = order
