"""Questions that passes ask about a graph, each in one place."""

__all__ = [
    "constant_array",
    "consumers",
    "is_constant",
    "is_op",
    "is_output",
    "producer",
    "reads",
    "scalar",
    "sole_consumer",
    "static_last_dim",
]

from typing import TypeGuard

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import weights

#: Constants up to this many elements may be read while matching; bigger ones are weights.
SMALL_ELEMENTS = 4096


def is_op(node: gs.Node | None, *ops: str, domain: str = "") -> TypeGuard[gs.Node]:
    """Whether ``node`` is one of ``ops`` in ``domain`` ("" and "ai.onnx" are the same)."""
    if node is None or node.op not in ops:
        return False
    return ("" if node.domain in (None, "", "ai.onnx") else node.domain) == domain


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes ``tensor``; None for graph inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read ``tensor``, each once, in graph order of their first use."""
    return list({id(n): n for n in tensor.outputs}.values())


def reads(node: gs.Node) -> list[gs.Tensor]:
    """What ``node`` reads, by itself and inside its subgraphs."""
    found = list(node.inputs)
    for sub in node.subgraphs(recursive=True):
        for inner in sub.nodes:
            found += inner.inputs
        found += sub.outputs
    return found


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is an output of ``graph``."""
    return id(tensor) in map(id, graph.outputs)


def sole_consumer(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The only node that reads ``tensor``; None if there are several or if it leaves the graph."""
    users = consumers(tensor)
    return users[0] if len(users) == 1 and not is_output(graph, tensor) else None


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is an initializer or the output of a Constant node."""
    return isinstance(tensor, gs.Constant) or is_op(producer(tensor), "Constant")


def constant_array(tensor: gs.Tensor, *, limit: int | None = SMALL_ELEMENTS) -> np.ndarray | None:
    """Values of a constant tensor; None if it is not constant or has more than ``limit`` elements."""
    if not isinstance(tensor, gs.Constant):
        node = producer(tensor)
        if not is_op(node, "Constant"):
            return None
        assert node is not None
        if "value" in node.attrs:
            tensor = node.attrs["value"]
        else:
            # Python's floats are double; the attribute is not.
            kinds = {"value_float": np.float32, "value_floats": np.float32}
            return next((np.array(v, kinds.get(k)) for k, v in node.attrs.items() if k.startswith("value_")), None)
    if limit is not None and int(np.prod(tensor.shape, dtype=np.int64)) > limit:
        return None
    return weights.read(tensor)


def scalar(tensor: gs.Tensor) -> float | None:
    """Value of a constant with one element; None if it is anything else."""
    array = constant_array(tensor, limit=1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def static_last_dim(tensor: gs.Tensor) -> int | None:
    """The last dimension of ``tensor`` if it is known as a number."""
    if not tensor.shape:
        return None
    last = tensor.shape[-1]
    return int(last) if isinstance(last, (int, np.integer)) else None
