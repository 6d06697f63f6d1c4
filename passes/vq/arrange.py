"""Channels of keys, scaled and reordered for their codebooks; the weights that make q and k take it over.

A codebook's nearest entry is the nearest in the plain sense, but what an error of a key costs is its product with the
queries; and every codebook has 8 bits, however large its channels are. Both are mended ahead of time:

    k'[c] = s[c] k[π(c)],  q'[c] = q[π(c)] / s[c],  cos'[c] = cos[π(c)],  sin'[c] = sin[π(c)]      q' · k' = q · k

A rotary turns channels i and i + D/2 together, so both have one scale and π moves both alike: then it turns q' and k'
with cos' and sin' as it turns q and k with cos and sin. s[c] is the root of what errors of channel c cost
(`AttentionStatistics.key_metric`), so that errors of all channels of k' cost the same. The errors of a codebook of v
channels with variances e grow like (Π e)^(1/v): π puts large and small ones into one codebook, which makes the sum
smaller. The tables are common to heads and layers, and so is π.
"""

__all__ = ["Arrangement", "arrange", "grouped_order"]

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.cache import CachedLayer
from graphopt.core.emit import Emitter
from graphopt.core.statistics import AttentionStatistics
from graphopt.ir.dead import dead_nodes
from graphopt.ir.model import Model
from graphopt.passes.vq.projection import Projection, find_projection

#: Scales of a head lie within this factor of their geometric mean: no type overflows.
_WIDEST = 16.0
#: Tokens that variances are taken of.
_SAMPLES = 4096
#: Variances count as at least this share of their mean.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Arrangement:
    """What is done to keys of one layer.

    Attributes:
        order: (D,) π: channel c was channel order[c].
        scale: (Hkv, D) s, by new channel.
    """

    order: np.ndarray
    scale: np.ndarray

    def keys(self, keys: np.ndarray) -> np.ndarray:
        """Return k' of rotated keys k (tokens, Hkv, D), float32."""
        return np.asarray(keys[..., self.order].astype(np.float32) * self.scale)


def arrange(
    model: Model,
    layers: Sequence[CachedLayer],
    statistics: Sequence[AttentionStatistics],
    token_weights: Sequence[np.ndarray],
    vector: int,
) -> list[tuple[CachedLayer, Arrangement | str]]:
    """Scale and reorder the channels of keys and queries in the weights that make them; scores stay what they are.

    Args:
        model: changed in place.
        layers: whose q and k are to change; nothing reads these yet.
        statistics: of each layer.
        token_weights: of each layer, (tokens, Hkv): how much errors of each token's key count.
        vector: v, consecutive channels that share a codebook.

    Returns:
        For each layer, the layer with its tables in the new order and what was done to it; or the layer as it was, and
        why nothing was done, as a clause.
    """
    found = _projections(model, layers, statistics)
    plans = {i: pair for i, pair in enumerate(found) if not isinstance(pair, str)}
    result: list[tuple[CachedLayer, Arrangement | str]]
    result = [(layer, pair if isinstance(pair, str) else "") for layer, pair in zip(layers, found, strict=True)]
    groups: dict[tuple[int, int], list[int]] = {}
    for i in plans:
        # Layers without a rotary have no tables in common.
        shared = (id(layers[i].cos), id(layers[i].sin)) if layers[i].rotary else (i, i)
        groups.setdefault(shared, []).append(i)
    for group in groups.values():
        first = layers[group[0]]
        period = _period(first)
        scales = [_scale(statistics[i], period, any(p.norm is not None for p in plans[i])) for i in group]
        spread = [_variances(statistics[i], token_weights[i], s, period) for i, s in zip(group, scales, strict=True)]
        part = grouped_order(np.concatenate(spread), vector)
        order = (np.arange(0, first.head_size, period)[:, None] + part).reshape(-1)
        tables = _tables(model, first, order) if first.rotary else (first.cos, first.sin)
        for i, scale in zip(group, scales, strict=True):
            done = Arrangement(order, scale[:, order])
            _fold(model, *plans[i], done)
            result[i] = replace(layers[i], cos=tables[0], sin=tables[1]), done
    return result


def grouped_order(variances: np.ndarray, vector: int) -> np.ndarray:
    """Return the order of channels in which the errors of codebooks of ``vector`` consecutive ones are small.

    The sum over rows and groups of (Π variances)^(1/v) is at a minimum with respect to swaps of two channels.

    Args:
        variances: (R, C), positive.
        vector: v; where it does not divide C, the order stays.

    Returns:
        (C,) permutation.
    """
    channels = variances.shape[1]
    if channels % vector or channels == vector:
        return np.arange(channels)
    logs = np.log(variances)
    groups = channels // vector
    # Largest to smallest, there and back: each group gets one of every size.
    turns = np.argsort(-logs.mean(axis=0), kind="stable").reshape(vector, groups)
    turns[1::2] = turns[1::2, ::-1].copy()
    order = turns.T.reshape(-1)
    group = np.arange(channels) // vector
    improved = True
    while improved:
        improved = False
        for a in range(channels):
            at = logs[:, order]
            total = at.reshape(-1, groups, vector).sum(axis=2)
            moved = at - at[:, a : a + 1]
            here, there = total[:, group[a], None], total[:, group]
            before = np.exp(here / vector) + np.exp(there / vector)
            after = np.exp((here + moved) / vector) + np.exp((there - moved) / vector)
            gain = np.where(group == group[a], 0, (before - after).sum(axis=0))
            b = int(gain.argmax())
            if gain[b] > 1e-6 * before[:, b].sum():
                order[[a, b]] = order[[b, a]]
                improved = True
    return order


def _period(layer: CachedLayer) -> int:
    """After how many channels the rotary's angles repeat; D without one."""
    return layer.head_size // 2 if layer.rotary else layer.head_size


def _projections(
    model: Model, layers: Sequence[CachedLayer], statistics: Sequence[AttentionStatistics]
) -> list[tuple[Projection, Projection] | str]:
    """What makes q and k of each layer and of no other, or why its channels cannot be changed."""
    dead = dead_nodes(model.graph)
    found = [_projection(model, *given, dead) for given in zip(layers, statistics, strict=True)]
    uses = Counter((id(p.linear.node), p.first) for pair in found if not isinstance(pair, str) for p in pair)
    return [
        pair
        if isinstance(pair, str) or all(uses[id(p.linear.node), p.first] == 1 for p in pair)
        else f"'{pair[1].linear.name}' makes keys or queries of another layer too"
        for pair in found
    ]


def _projection(
    model: Model, layer: CachedLayer, entry: AttentionStatistics, dead: set[int]
) -> tuple[Projection, Projection] | str:
    if entry.key_metric is None:
        return "its statistics are from before costs of channels were measured; calibrate again"
    q, k = (find_projection(model.graph, t, layer.head_size, dead) for t in (layer.q, layer.k))
    if isinstance(q, str) or isinstance(k, str):
        return q if isinstance(q, str) else str(k)
    if k.heads != layer.kv_heads or q.heads % k.heads:
        return f"{q.heads} heads of queries and {k.heads} of keys do not fit its {layer.kv_heads} heads"
    return q, k


def _scale(entry: AttentionStatistics, period: int, alike: bool) -> np.ndarray:
    """Return s (Hkv, D) float64, in the old order; the same for every head if ``alike``."""
    assert entry.key_metric is not None
    heads, size = entry.key_metric.shape
    cost = entry.key_metric.astype(np.float64).reshape(heads, -1, period).sum(axis=1)
    mean = cost.mean(axis=1, keepdims=True)
    cost = np.divide(cost, mean, where=mean > 0, out=np.ones_like(cost))
    if alike:
        cost = np.broadcast_to(cost.mean(axis=0), cost.shape)
    logs = np.log(np.maximum(cost, _SMALLEST)) / 2
    logs = np.clip(logs - logs.mean(axis=1, keepdims=True), -np.log(_WIDEST), np.log(_WIDEST))
    return np.tile(np.exp(logs), size // period)


def _variances(entry: AttentionStatistics, weight: np.ndarray, scale: np.ndarray, period: int) -> np.ndarray:
    """Return variances of scaled keys (Hkv · D / period, period), relative to what the old order makes of the layer."""
    step = max(1, len(entry.keys) // _SAMPLES)
    keys = entry.keys[::step].astype(np.float32) * scale.astype(np.float32)
    share = weight[::step] / weight[::step].sum(axis=0)
    mean = np.einsum("th,thd->hd", share, keys)
    variance = np.einsum("th,thd->hd", share, np.square(keys - mean)).astype(np.float64)
    total = float(variance.mean())
    relative = np.maximum(variance / total, _SMALLEST) if total > 0 else np.ones_like(variance)
    return np.asarray(relative.reshape(-1, period))


def _tables(model: Model, layer: CachedLayer, order: np.ndarray) -> tuple[gs.Tensor, gs.Tensor]:
    emitter = Emitter(model, model.graph, "vq_cache")
    index = emitter.const(order)
    cos, sin = (emitter.op("Gather", t, index, like=t, axis=-1) for t in (layer.cos, layer.sin))
    return cos, sin


def _fold(model: Model, q: Projection, k: Projection, done: Arrangement) -> None:
    k.change(model, done.order, done.scale)
    q.change(model, done.order, 1 / np.repeat(done.scale, q.heads // k.heads, axis=0))
    for linear in {id(p.linear.node): p.linear for p in (q, k)}.values():
        # Nobody shall take it for the value that the name had.
        output = linear.node.outputs[0]
        output.name = model.unique_name(f"{output.name}_arranged")
