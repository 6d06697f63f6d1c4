"""Keys and values of attention layers and who reads them, measured by running the model in ONNX Runtime."""

__all__ = ["collect_attention"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.calibrate.feeds import Feed
from graphopt.calibrate.taps import BUDGET, Tap, TappedModel, grouped, rows
from graphopt.core.op import DOMAIN
from graphopt.core.statistics import AttentionStatistics
from graphopt.errors import CalibrationError
from graphopt.ir import query

#: Tokens of which keys and values are kept, and how many of a model whose tokens are too large for `KEPT_BYTES`.
TOKENS, LEAST_TOKENS = 16384, 4096
#: Bytes of keys and values that are kept of all layers together, where that is more than `LEAST_TOKENS` of them.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class _Layer:
    name: str
    scale: float
    taps: tuple[Tap, ...]  # q, k, v, mask


def collect_attention(
    model: ir.Model,
    feeds: Sequence[Feed],
    *,
    tokens: int | None = None,
    budget: int = BUDGET,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, AttentionStatistics]:
    """Run ``model`` on ``feeds`` and return what each canonical attention reads, by its name.

    Args:
        model: canonical, with the bodies of its custom ops attached; not changed.
        feeds: at least one; each is run by itself.
        tokens: keep keys and values of about this many, spread evenly over all (default: `TOKENS`, or as many as fit
            `KEPT_BYTES` but no fewer than `LEAST_TOKENS`).
        budget: bytes of inner values held at once.
        threads: for ONNX Runtime (default: all cores).
        progress: called with (runs done, runs in all).

    Raises:
        CalibrationError: no attention, or keys, values or queries that are NaN or Inf.
        ModelError: ONNX Runtime refuses the model or a feed.
    """
    nodes = [n for n in model.graph.nodes if query.is_op(n, "Attention", domain=DOMAIN)]
    layers = [_Layer(n.name, float(n.attrs["scale"]), tuple(_tap(t) for t in n.inputs)) for n in nodes]
    if not layers:
        raise CalibrationError("the model has no attention whose keys and values could be measured")
    by_query = {layer.taps[0].tensor: layer for layer in layers}
    longest = max(map(rows, feeds))
    cost = {layer.taps[0].tensor: 4 * longest * sum(tap.channels for tap in layer.taps[1:]) for layer in layers}
    groups = grouped((layer.taps[0] for layer in layers), longest, budget, extra=cost)
    stride = max(1, sum(map(rows, feeds)) // (tokens or _tokens(layers)))
    found: dict[str, AttentionStatistics] = {}
    done = 0
    with TappedModel(model, threads=threads, wide=True) as tapped:
        for group in groups:
            part = [by_query[tap.tensor] for tap in group]
            observers = {layer.name: _Observer(stride, layer.scale) for layer in part}
            session = tapped.open(list({tap.tensor: tap for layer in part for tap in layer.taps}.values()))
            for feed in feeds:
                values = session.run(feed)
                for layer in part:
                    if not observers[layer.name].update(*(values[tap.tensor] for tap in layer.taps)):
                        raise CalibrationError(
                            f"keys, values or queries of '{layer.name}' hold NaN or Inf during calibration; check the "
                            "model's weights and the data, or calibrate it in a wider type"
                        )
                done += 1
                if progress:
                    progress(done, len(feeds) * len(groups))
            found |= {name: observer.statistics() for name, observer in observers.items()}
    return found


def _tokens(layers: Sequence[_Layer]) -> int:
    """How many tokens' keys and values, float16, are kept where nobody says."""
    size = 2 * sum(tap.channels for layer in layers for tap in layer.taps[1:3])
    return min(TOKENS, max(LEAST_TOKENS, KEPT_BYTES // max(size, 1)))


def _tap(tensor: gs.Tensor) -> Tap:
    shape = tensor.shape or []
    sizes = [int(n) for n in (shape[1], shape[3]) if isinstance(n, (int, np.integer))] if len(shape) == 4 else []
    return Tap(tensor.name, int(np.prod(sizes, dtype=np.int64)))


class _Observer:
    """Keeps every ``stride``-th token's keys and values of one layer, and how much they are read."""

    def __init__(self, stride: int, scale: float) -> None:
        self._stride, self._scale, self._next = stride, scale, 0
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._metric: np.ndarray | None = None

    def update(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> bool:
        """Add a run; False if q, k or v are not finite.

        Args:
            q: (B, Hq, S, D) float32.
            k: (B, Hkv, L, D) float32.
            v: (B, Hkv, L, Dv) float32.
            mask: additive, broadcastable to (B, Hq, S, L).
        """
        if not all(np.isfinite(x).all() for x in (q, k, v)):
            return False
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        batch, heads, length = len(k), k.shape[1], k.shape[2]
        read, key_read = np.zeros((2, batch, heads, length), np.float32)
        metric = np.zeros((heads, k.shape[3])) if self._metric is None else self._metric
        group = q.shape[1] // heads
        for h in range(q.shape[1]):
            part = mask[:, h : h + 1] if mask.shape[1] > 1 else mask
            scores = q[:, h] @ k[:, h // group].transpose(0, 2, 1) * np.float32(self._scale) + part[:, 0]
            scores = np.exp(scores - np.maximum(scores.max(axis=2, keepdims=True), np.finfo(np.float32).min))
            total = scores.sum(axis=2, keepdims=True)
            probabilities = np.divide(scores, total, where=total > 0, out=np.zeros_like(scores))
            squares = np.square(probabilities)
            read[:, h // group] += squares.sum(axis=1)
            by_token, by_channel = self._through_keys(squares, probabilities, q[:, h], v[:, h // group])
            key_read[:, h // group] += by_token
            metric[h // group] += by_channel
        limit = np.finfo(np.float16).max
        flat = [x.transpose(0, 2, 1, 3).reshape(batch * length, heads, x.shape[3]) for x in (k, v)]
        halves = [np.clip(x, -limit, limit).astype(np.float16) for x in flat]
        kept = slice(self._next, None, self._stride)
        weights = (x.transpose(0, 2, 1).reshape(-1, heads) for x in (read, key_read))
        self._kept.append(tuple(x[kept] for x in (*halves, *weights)))
        self._next = (self._next - batch * length) % self._stride
        self._metric = metric
        return True

    def _through_keys(
        self, squares: np.ndarray, p: np.ndarray, q: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return Σ p² |v - y|² |scale · q|² of one query head by token, (B, L), and by channel of q, (D,).

        Args:
            squares, p: (B, S, L), p² and p.
            q: (B, S, D).
            v: (B, L, Dv).
        """
        y = p @ v
        apart = np.square(v).sum(axis=2)[:, None] - 2 * (y @ v.transpose(0, 2, 1)) + np.square(y).sum(axis=2)[..., None]
        energy = np.float32(self._scale**2) * np.square(q)
        moved = squares * np.maximum(apart, 0)
        by_token = (moved * energy.sum(axis=2)[..., None]).sum(axis=1)
        return by_token, np.einsum("bs,bsd->d", moved.sum(axis=2), energy, dtype=np.float64)

    def statistics(self) -> AttentionStatistics:
        """Return what was kept."""
        keys, values, read, key_read = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        metric = None if self._metric is None else self._metric.astype(np.float32)
        return AttentionStatistics(keys, values, read, key_read, metric)
