"""What a cache with a start per sequence must know of a mask and of rotary tables, shown by evaluating them.

A mask may go if it lets each new token see exactly the tokens up to itself. Rotary tables may be computed from start if
an integer tensor on the way to them is past, past + 1, ...: then start, start + 1, ... takes its place.
"""

__all__ = ["Cut", "cuts", "padding", "tables_rank"]

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.kvcache.probe import Probe, Prober, UnprovableError

#: Prompts and single tokens after them, of sizes that no two axes share.
_PROBES = (Probe(2, 5, 0), Probe(1, 4, 0), Probe(3, 1, 7), Probe(1, 1, 2))
#: Prompts that continue, which not every exporter's model can compute.
_CONTINUED = (Probe(2, 3, 5), Probe(1, 6, 2))
#: Steps so late that a sliding window shows; the first that the model has tables for.
_LATE = tuple(Probe(1, 1, past) for past in (65536, 16384, 4096, 1024, 128))
#: Additive masks block by -inf or by a number that no score outweighs.
_BLOCKED = -1e4
#: Cosines and sines of neighbouring positions differ by more; orders of summation by less.
_SAME_ANGLE = 1e-5
_MASK = "attention_mask"


@dataclass(frozen=True)
class Cut:
    """A tensor that holds positions: (B, S) in axes 0 and ``axis`` of ``rank`` axes; a rank of 1 is (S,)."""

    tensor: gs.Tensor
    rank: int
    axis: int

    def shaped(self, positions: np.ndarray) -> np.ndarray:
        """Return ``positions`` (B, S) as what replaces the tensor: its rank, or (B, S) where that is 1."""
        axes = tuple(i for i in range(self.rank) if i not in (0, self.axis))
        return np.expand_dims(positions, axes)


def padding(prober: Prober, mask: gs.Tensor) -> str:
    """Show that ``mask`` is causal, and say how it treats tokens that attention_mask excludes.

    Returns:
        "left" if columns with attention_mask 0 are hidden, "right" if as many columns at the end are, "ignored".

    Raises:
        UnprovableError: the mask is something else: a window, a bias, or nothing at all.
    """
    for probe in _PROBES:
        _check_causal(prober.run([mask], probe)[0], probe)
    for probe in _CONTINUED:
        if (continued := _computed(prober, mask, probe)) is not None:
            _check_causal(continued, probe)
    late = ((values, probe) for probe in _LATE if (values := _computed(prober, mask, probe)) is not None)
    for values, probe in itertools.islice(late, 1):
        _check_causal(values, probe)
    probe, excluded = _PROBES[0], 2
    given = np.ones((probe.batch, probe.total), np.int64)
    given[1, :excluded] = 0
    right = np.ones_like(given)
    right[1, probe.total - excluded :] = 0
    (values,) = prober.run([mask], probe, given={_MASK: given})
    for name, visible in (("left", given), ("right", right), ("ignored", np.ones_like(given))):
        if _mismatch(values, probe, visible.astype(bool)) is None:
            return name
    raise UnprovableError(f"mask '{mask.name}' treats padding in no known way")


def _computed(prober: Prober, mask: gs.Tensor, probe: Probe) -> np.ndarray | None:
    """Return the mask, or None where the model cannot compute these sizes, so that no caller can have used them."""
    try:
        return prober.run([mask], probe)[0]
    except UnprovableError:
        return None


def _check_causal(values: np.ndarray, probe: Probe) -> None:
    if reason := _mismatch(values, probe, np.ones((probe.batch, probe.total), bool)):
        raise UnprovableError(f"{reason} ({probe.seq} new tokens after {probe.past})")


def _mismatch(values: np.ndarray, probe: Probe, visible: np.ndarray) -> str | None:
    """Return how an additive mask differs from: 0 where j <= past + i and ``visible``, blocked elsewhere."""
    shape = (probe.batch, values.shape[1] if values.ndim == 4 else 1, probe.seq, probe.total)
    try:
        values = np.broadcast_to(np.asarray(values, np.float32), shape)
    except ValueError:
        return f"the mask has shape {list(values.shape)}"
    allowed = (np.arange(probe.total) <= probe.positions()[..., None]) & visible[:, None]
    # A row that sees nothing is padding: what it computes is never read.
    real = allowed.any(axis=-1, keepdims=True)
    seen, hidden = (np.broadcast_to((x & real)[:, None], shape) for x in (allowed, ~allowed))
    if (values[seen] <= _BLOCKED).any():
        return "the mask hides earlier tokens, as a sliding window does"
    if (values[seen] != 0).any():
        return "the mask adds a bias to the scores, as ALiBi does"
    if (values[hidden] > _BLOCKED).any():
        return "the mask lets tokens see later ones" if visible.all() else "the mask shows padding"
    return None


def cuts(prober: Prober, tensors: Sequence[gs.Tensor]) -> dict[int, Cut]:
    """Return which of ``tensors`` (integers) hold the positions of the new tokens, by id."""
    tensors = [t for t in tensors if prober.obstacle(t) is None]
    if not tensors:
        return {}
    values = {probe: prober.run(tensors, probe) for probe in _PROBES}
    found = {}
    for i, tensor in enumerate(tensors):
        cut = _as_cut(tensor, values[_PROBES[0]][i].shape, _PROBES[0])
        if cut is not None and all(_holds_positions(cut, values[probe][i], probe) for probe in _PROBES):
            found[id(tensor)] = cut
    return found


def _as_cut(tensor: gs.Tensor, shape: tuple[int, ...], probe: Probe) -> Cut | None:
    axes = [i for i, size in enumerate(shape) if size == probe.seq]
    if len(axes) != 1 or (axes[0] == 0 and len(shape) > 1):
        return None
    others = [size for i, size in enumerate(shape) if i not in (0, axes[0])]
    if len(shape) > 1 and (shape[0] not in (1, probe.batch) or any(size != 1 for size in others)):
        return None
    return Cut(tensor, len(shape), axes[0])


def _holds_positions(cut: Cut, value: np.ndarray, probe: Probe) -> bool:
    positions = probe.positions()
    if cut.rank == 1:
        return np.array_equal(value, positions[0])
    expected = cut.shaped(positions)
    # Positions of keys are those of queries as long as there is no past.
    fits = value.ndim == cut.rank and all(n in (1, size) for n, size in zip(value.shape, expected.shape, strict=True))
    return fits and np.array_equal(np.broadcast_to(value, expected.shape), expected)


def tables_rank(prober: Prober, tables: Sequence[gs.Tensor], cut: Sequence[Cut]) -> int:
    """Show that ``tables`` follow from the positions of each sequence alone, and return the rank they have then.

    The rank is 4 for (B, 1, S, D), 3 for (B, S, D).

    Raises:
        UnprovableError: with positions that differ by sequence, some table is not that of each sequence alone.
    """
    if not cut:
        raise UnprovableError(
            f"nothing that rotary table '{tables[0].name}' is computed from holds past, past + 1, ..."
        )
    batch, seq, pasts = 2, 3, (5, 0)
    alone = [prober.run(tables, Probe(1, seq, past)) for past in pasts]
    positions = np.array(pasts)[:, None] + np.arange(seq)
    given = {c.tensor.name: c.shaped(positions).astype(np.int64) for c in cut}
    together = prober.run(tables, Probe(batch, seq, max(pasts)), given=given)
    ranks = set()
    for i, table in enumerate(tables):
        value, width = together[i], together[i].shape[-1]
        shapes = {4: (batch, 1, seq, width), 3: (batch, seq, width)}
        if value.shape != shapes.get(value.ndim):
            raise UnprovableError(f"rotary table '{table.name}' has shape {list(value.shape)}")
        for b, past in enumerate(pasts):
            row, expected = (x.reshape(-1, seq, width)[n].astype(np.float32) for x, n in ((value, b), (alone[b][i], 0)))
            if not np.allclose(row, expected, rtol=0, atol=_SAME_ANGLE):
                raise UnprovableError(
                    f"rotary table '{table.name}' does not follow from positions (after {past} tokens)"
                )
        ranks.add(value.ndim)
    if len(ranks) > 1:
        raise UnprovableError("the rotary tables have different ranks")
    return ranks.pop()
