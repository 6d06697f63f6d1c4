"""Additive masks and positions from what fused attention operators are given instead: lengths and flags.

Everything here depends on shapes and on inputs that all layers share, never on activations, so that `share_common`
leaves one copy in a model.
"""

__all__ = ["additive", "causal", "combine", "shared_length", "step_positions"]

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.emit import Emitter, element_type


def shared_length(emitter: Emitter, tensor: gs.Tensor, axis: int) -> gs.Tensor:
    """Return dimension ``axis`` of ``tensor`` as an int64 vector of one element.

    A dimension with a name that an input of the graph also has is read from that input, so that layers agree on it.
    """
    name = tensor.shape[axis] if tensor.shape is not None else None
    if isinstance(name, str):
        for source in emitter.graph.inputs:
            if source.shape is not None and name in source.shape:
                index = list(source.shape).index(name)
                return emitter.dims(source, index, index + 1)
    return emitter.dims(tensor, axis, axis + 1)


def step_positions(emitter: Emitter, length: gs.Tensor, past: gs.Tensor | None) -> gs.Tensor:
    """Return absolute positions (S,) int64 of the current tokens: past + 0, 1, ... (both lengths of shape (1,))."""
    scalar = emitter.const([], np.int64)
    zero, one = emitter.const(0), emitter.const(1)
    count = emitter.op("Reshape", length, scalar, dtype=np.int64, shape=[])
    steps = emitter.op("Range", zero, count, one, dtype=np.int64, shape=[None])
    return steps if past is None else emitter.op("Add", steps, past, dtype=np.int64, shape=[None])


def causal(
    emitter: Emitter, length: gs.Tensor, past: gs.Tensor | None, window: int = -1, keys: gs.Tensor | None = None
) -> gs.Tensor:
    """Return a bool tensor (S, L), true where key j may be seen by query i: j <= past + i (and > past + i - window).

    Args:
        emitter: writes the nodes.
        length: S, shape (1,).
        past: number of keys before the current tokens, shape (1,); None for 0.
        window: how many keys back a query sees, itself included; -1 for all.
        keys: L, shape (1,); by default past + S.
    """
    queries = emitter.unsqueeze(step_positions(emitter, length, past), [1])
    if keys is None:
        keys = length if past is None else emitter.op("Add", past, length, dtype=np.int64, shape=[1])
    every = step_positions(emitter, keys, None)
    seen = emitter.op("LessOrEqual", every, queries, dtype=np.bool_, shape=[None, None])
    if window < 0:
        return seen
    first = emitter.op("Sub", queries, emitter.const(window), dtype=np.int64, shape=[None, 1])
    near = emitter.op("Greater", every, first, dtype=np.bool_, shape=[None, None])
    return emitter.op("And", seen, near, dtype=np.bool_, shape=[None, None])


def additive(emitter: Emitter, allowed: gs.Tensor, like: gs.Tensor) -> gs.Tensor:
    """Return 0 where the bool tensor ``allowed`` is true and -inf elsewhere, in the type of ``like``."""
    kind = element_type(like)
    zero, blocked = emitter.const(0.0, kind), emitter.const(-np.inf, kind)
    return emitter.op("Where", allowed, zero, blocked, dtype=like.dtype, shape=allowed.shape)


def combine(emitter: Emitter, masks: list[gs.Tensor]) -> gs.Tensor | None:
    """Return the sum of additive masks; None if there are none."""
    if not masks:
        return None
    total, *rest = masks
    for mask in rest:
        total = emitter.op("Add", total, mask, dtype=mask.dtype)
    return total
