"""Nodes that contribute to no output of their graph, and taking them out in time that grows with the graph alone.

graphsurgeon's own clean-up takes each node out of the readers of its inputs by a search, which is quadratic where
thousands of nodes read one constant, and compares every input of the graph with every tensor.
"""

__all__ = ["dead_nodes", "remove_dead"]

import onnx_graphsurgeon as gs

from graphopt.ir import query


def dead_nodes(graph: gs.Graph) -> set[int]:
    """Return the ids of the nodes of ``graph`` itself that contribute to none of its outputs."""
    dead = {id(node) for node in graph.nodes}
    pending = list(graph.outputs)
    while pending:
        for node in pending.pop().inputs:
            if id(node) in dead:
                dead.remove(id(node))
                pending += query.reads(node)
    return dead


def remove_dead(graph: gs.Graph) -> None:
    """Take out the nodes of ``graph`` and its subgraphs that contribute to no output; inputs stay."""
    for node in graph.nodes:
        for sub in node.subgraphs():
            remove_dead(sub)
    for given in graph.inputs:
        given.inputs.clear()
    dead = dead_nodes(graph)
    if not dead:
        return
    read: dict[int, gs.Tensor] = {}
    for node in graph.nodes:
        if id(node) in dead:
            read.update((id(t), t) for t in node.inputs)
            node.outputs.clear()
            list.clear(node.inputs)  # and not their readers, which the next lines do at once
    for tensor in read.values():
        list.__setitem__(tensor.outputs, slice(None), [n for n in tensor.outputs if id(n) not in dead])
    graph.nodes = [node for node in graph.nodes if id(node) not in dead]
