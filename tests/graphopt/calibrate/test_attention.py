"""Keys and values of attention: what is kept is what the layers read, and who reads it is the softmax's answer."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import ir
from graphopt.calibrate import attention as module
from graphopt.calibrate.attention import collect_attention
from graphopt.calibrate.taps import rows
from graphopt.core.op import attach_bodies
from graphopt.errors import CalibrationError
from graphopt.passes.canonicalize import ops
from tests.support.arrays import activations

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 6, 0.4


def attention(mask_shape: tuple[int | str, ...] = (1, 1, "s", "s")) -> ir.Model:
    q, k, v = (
        gs.Variable(n, np.float32, ["b", h, "s", SIZE]) for n, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    )
    mask = gs.Variable("mask", np.float32, list(mask_shape))
    y = gs.Variable("y", np.float32, ["b", HEADS, "s", SIZE])
    spec = next(op for op in ops.OPS if op.name == "Attention")
    node = spec.node("attn", [q, k, v, mask], [y], scale=SCALE)
    model = ir.Model(gs.Graph([node], [q, k, v, mask], [y], opset=18))
    attach_bodies(model, ops.OPS)
    return model


def feed(rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    mask = np.where(np.tri(tokens), 0, -np.inf).astype(np.float32)[None, None]
    return {**{n: activations(rng, 2, h, tokens, SIZE) for n, h in heads.items()}, "mask": mask}


def test_everything_is_kept_and_weighted(rng: np.random.Generator) -> None:
    feeds = [feed(rng, 5), feed(rng, 9)]
    (entry,) = collect_attention(attention(), feeds).values()
    keys = [f["k"].transpose(0, 2, 1, 3).reshape(-1, KV_HEADS, SIZE) for f in feeds]
    np.testing.assert_array_equal(entry.keys, np.concatenate(keys).astype(np.float16))
    expected = []
    for f in feeds:
        scores = np.einsum("bhqd,bhkd->bhqk", f["q"], np.repeat(f["k"], 2, axis=1)) * SCALE + f["mask"]
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        read = np.square(p).sum(axis=2).reshape(2, KV_HEADS, 2, -1).sum(axis=2)
        expected.append(read.transpose(0, 2, 1).reshape(-1, KV_HEADS))
    np.testing.assert_allclose(entry.attention, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert entry.damage() is None


@pytest.mark.parametrize("shape", [("s", "s"), (1, "s", "s"), (HEADS, "s", "s"), ("b", 1, 1, "s"), ("s",)])
def test_masks_of_any_rank(rng: np.random.Generator, shape: tuple[int | str, ...]) -> None:
    """They are broadcast as the op does it, from the last axis on."""
    given = feed(rng, 6)
    sizes = [{"b": 2, "s": 6}.get(d, d) for d in shape]
    given["mask"] = np.where(rng.random(sizes) < 0.7, rng.standard_normal(sizes), -np.inf).astype(np.float32)
    whole = {**given, "mask": np.broadcast_to(given["mask"], (2, HEADS, 6, 6))}
    (entry,) = collect_attention(attention(shape), [given]).values()
    (expected,) = collect_attention(attention(("b", HEADS, "s", "s")), [whole]).values()
    for name, array in expected.parts.items():
        np.testing.assert_allclose(getattr(entry, name), array, rtol=1e-5)


def test_what_an_error_of_a_key_costs(rng: np.random.Generator) -> None:
    """Small errors of one token's key, alike in all directions, change the outputs by as much as the weight says."""
    given = feed(rng, 6)
    (entry,) = collect_attention(attention(), [given]).values()
    q, k, v = (given[n].astype(np.float64) for n in "qkv")

    def outputs(keys: np.ndarray) -> np.ndarray:
        scores = np.einsum("bhqd,bhkd->bhqk", q, np.repeat(keys, 2, axis=1)) * SCALE + given["mask"]
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (p / p.sum(axis=-1, keepdims=True)) @ np.repeat(v, 2, axis=1)

    exact, step = outputs(k), 1e-5
    costs = np.zeros((2, KV_HEADS, 6, SIZE))
    for at in np.ndindex(*costs.shape):
        moved = k.copy()
        moved[at] += step
        costs[at] = np.square((outputs(moved) - exact) / step).sum()
    assert entry.key_attention is not None and entry.key_metric is not None
    np.testing.assert_allclose(entry.key_metric, costs.sum(axis=(0, 2)), rtol=1e-3, atol=1e-4 * costs.max())
    expected = costs.sum(axis=3).transpose(0, 2, 1).reshape(-1, KV_HEADS)
    np.testing.assert_allclose(entry.key_attention, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_large_tokens_are_fewer(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bytes of all layers, but never below the least number."""
    size = 2 * 2 * KV_HEADS * SIZE
    feeds = [feed(rng, 20) for _ in range(4)]
    seen = sum(map(rows, feeds))
    monkeypatch.setattr(module, "LEAST_TOKENS", seen // 8)
    for allowed, kept in ((seen * size, 160), (seen * size // 2, 80), (0, 20)):
        monkeypatch.setattr(module, "KEPT_BYTES", allowed)
        (entry,) = collect_attention(attention(), feeds).values()
        assert len(entry.keys) == kept


def test_a_part_is_kept_evenly(rng: np.random.Generator) -> None:
    feeds = [feed(rng, 7) for _ in range(6)]
    (entry,) = collect_attention(attention(), feeds, tokens=120).values()
    everything = np.concatenate([f["v"].transpose(0, 2, 1, 3).reshape(-1, KV_HEADS, SIZE) for f in feeds])
    stride = len(everything) // len(entry.values)
    assert 1 < stride < 4
    np.testing.assert_array_equal(entry.values, everything[::stride][: len(entry.values)].astype(np.float16))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_names_the_layer(rng: np.random.Generator, name: str) -> None:
    bad = feed(rng, 5)
    bad[name][0, 0, 2, 1] = np.nan
    with pytest.raises(CalibrationError, match="'attn' hold NaN or Inf"):
        collect_attention(attention(), [bad])
