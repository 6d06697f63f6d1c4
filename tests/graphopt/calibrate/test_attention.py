"""Keys and values of attention: what is kept is what the layers read, and who reads it is the softmax's answer."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import ir
from graphopt.calibrate.attention import collect_attention
from graphopt.core.op import attach_bodies
from graphopt.errors import CalibrationError
from graphopt.passes.canonicalize import ops
from tests.support.arrays import activations

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 6, 0.4


def attention() -> ir.Model:
    q, k, v = (
        gs.Variable(n, np.float32, ["b", h, "s", SIZE]) for n, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    )
    mask = gs.Variable("mask", np.float32, [1, 1, "s", "s"])
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
