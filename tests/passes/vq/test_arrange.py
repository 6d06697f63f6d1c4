"""Channels of keys in another scale and order: what attention gives stays what it was."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import compile, ir
from graphopt.core.cache import CachedLayer
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.core.statistics import AttentionStatistics, Statistics
from graphopt.ir import query
from graphopt.numerics import layers as numerics
from graphopt.passes import CACHES, SCHEMES
from graphopt.passes.kvcache import static
from graphopt.passes.vq.arrange import Arrangement, arrange, grouped_order
from tests.support.decoders import write_decoder
from tests.support.runtime import run_ort

EXPORTERS = Path(__file__).parents[2] / "fixtures" / "exporters"
TOKENS = 48


def entry(heads: int, size: int, seed: int, metric: bool = True) -> AttentionStatistics:
    """Keys and queries whose channels differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, 1.5, (heads, size)))
    keys = (rng.standard_normal((TOKENS, heads, size)) * sizes).astype(np.float16)
    costs = rng.uniform(0.1, 9, (2, TOKENS, heads)).astype(np.float32)
    of_channels = np.exp(rng.normal(0, 2, (heads, size))).astype(np.float32)
    return AttentionStatistics(keys, keys[::-1].copy(), *costs, of_channels if metric else None)


class Arranged(static.Static):
    """The cache in the activation type, behind arranged channels: exact but for rounding."""

    def __init__(self, metric: bool = True) -> None:
        self.metric = metric
        self.done: list[Arrangement | str] = []

    def emit(
        self,
        model: ir.Model,
        layers: Sequence[CachedLayer],
        config: Any,
        statistics: Statistics | None,
        report: Report,
    ) -> tuple[float, list[tuple[str, str]]]:
        entries = [entry(layer.kv_heads, layer.head_size, i, self.metric) for i, layer in enumerate(layers)]
        found = arrange(model, layers, entries, [e.attention for e in entries], 2)
        self.done = [how for _, how in found]
        return super().emit(model, [layer for layer, _ in found], config, statistics, report)


def optimized(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch, form: static.Static) -> tuple[Path, ir.Model]:
    monkeypatch.setitem(CACHES, "static", form)
    model = ir.load(source)
    compile.optimize(model, Recipe.preset("none", SCHEMES).with_cache("static", {"capacity": 16}, CACHES))
    ir.save(model, path)
    return path, model


def feed(model: ir.Model, tokens: int) -> dict[str, np.ndarray]:
    """A prompt behind three rows that are there."""
    rng, result = np.random.default_rng(4), {}
    for tensor in model.graph.inputs:
        if tensor.name == "start":
            result[tensor.name] = np.full(2, 3, np.int32)
        elif tensor.name.startswith("past"):
            shape = [2, *tensor.shape[1:]]
            result[tensor.name] = np.zeros(shape, tensor.dtype)
        else:
            result[tensor.name] = rng.integers(0, 60, (2, tokens))
    return result


MODELS = ["built", "llama_dynamo18_kv", "llama_genai_fp32", "qwen2_genai_fp32", "qwen3_dynamo18_kv"]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_what_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate and merged projections, with biases, with norms of heads."""
    source = write_decoder(tmp_path / "m.onnx") if name == "built" else EXPORTERS / f"{name}.onnx"
    form = Arranged()
    plain, _ = optimized(source, tmp_path / "plain.onnx", monkeypatch, static.STATIC)
    path, model = optimized(source, tmp_path / "arranged.onnx", monkeypatch, form)
    assert form.done and all(isinstance(how, Arrangement) for how in form.done)
    given = feed(model, 9)
    names = [t.name for t in model.graph.outputs]
    expected, got = (dict(zip(names, run_ort(p, given), strict=True)) for p in (plain, path))
    for layer, (key, how) in enumerate(zip([n for n in names if n.endswith("key")], form.done, strict=True)):
        assert isinstance(how, Arrangement)
        rows = expected[key][:, :, 3:12].transpose(0, 2, 1, 3)
        turned = got[key][:, :, 3:12].transpose(0, 2, 1, 3)
        np.testing.assert_allclose(turned, how.keys(rows), rtol=1e-4, atol=1e-5 * np.abs(turned).max())
        assert np.abs(turned - rows).max() > 0.1 * np.abs(rows).max(), layer
    error = np.linalg.norm(got["logits"] - expected["logits"]) / np.linalg.norm(expected["logits"])
    assert error < 1e-5


def test_what_others_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that leave the model before the rotary are nobody's to change."""
    source = write_decoder(tmp_path / "m.onnx")
    form = Arranged()
    model = ir.load(source)
    read = next(n for n in model.graph.nodes if query.is_op(n, "MatMul") and "k_proj" in n.name).outputs[0]
    model.graph.outputs.append(read)
    ir.save(model, tmp_path / "read.onnx")
    optimized(tmp_path / "read.onnx", tmp_path / "o.onnx", monkeypatch, form)
    first, second = form.done
    assert isinstance(second, Arrangement)
    assert isinstance(first, str) and read.name in first


def test_keys_that_two_layers_share_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.load(write_decoder(tmp_path / "m.onnx"))
    first, second = (n for n in model.graph.nodes if query.is_op(n, "MatMul") and "k_proj" in n.name)
    (reader,) = query.consumers(second.outputs[0])
    reader.inputs[0] = first.outputs[0]
    ir.save(model, tmp_path / "shared.onnx")
    form = Arranged()
    optimized(tmp_path / "shared.onnx", tmp_path / "o.onnx", monkeypatch, form)
    assert all(isinstance(how, str) and "of another layer too" in how for how in form.done)


def test_a_statistics_file_from_before_leaves_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Arranged(metric=False)
    optimized(write_decoder(tmp_path / "m.onnx"), tmp_path / "o.onnx", monkeypatch, form)
    assert all(isinstance(how, str) and "calibrate again" in how for how in form.done)


@given(seed=st.integers(0, 2**32 - 1), heads=st.integers(1, 3), half=st.sampled_from([2, 3, 8]))
@settings(max_examples=30, deadline=None)
def test_arranging_commutes_with_the_rotary(seed: int, heads: int, half: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, heads, 5, 2 * half))
    angles = np.tile(rng.uniform(-9, 9, (1, 1, 5, half)), 2)
    order = np.concatenate([part := rng.permutation(half), part + half])
    scale = np.tile(np.exp(rng.normal(0, 1, (heads, half))), 2)[:, order]
    done = Arrangement(order, scale)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = numerics.rotary(k, cos, sin).transpose(0, 2, 1, 3)[0]
    raw = (k[..., order] * scale[:, None], q[..., order] / scale[:, None])
    new_k, new_q = (numerics.rotary(x, cos[..., order], sin[..., order]) for x in raw)
    np.testing.assert_allclose(new_k[0].transpose(1, 0, 2), done.keys(turned), rtol=1e-5, atol=1e-6)
    scores = np.einsum("bhqd,bhkd->bhqk", numerics.rotary(q, cos, sin), numerics.rotary(k, cos, sin))
    np.testing.assert_allclose(np.einsum("bhqd,bhkd->bhqk", new_q, new_k), scores, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), vector=st.sampled_from([2, 4]))
@settings(max_examples=30, deadline=None)
def test_order_is_a_permutation_and_no_swap_improves_it(seed: int, vector: int) -> None:
    variances = np.exp(np.random.default_rng(seed).normal(0, 2, (5, 8)))
    order = grouped_order(variances, vector)
    assert sorted(order) == list(range(8))

    def cost(order: np.ndarray) -> float:
        grouped = np.log(variances)[:, order].reshape(5, -1, vector).mean(axis=2)
        return float(np.exp(grouped).sum())

    least = cost(order)
    assert least <= cost(np.arange(8)) * (1 + 1e-9)
    for a in range(8):
        for b in range(a):
            swapped = order.copy()
            swapped[[a, b]] = order[[b, a]]
            assert cost(swapped) >= least * (1 - 1e-5)


@pytest.mark.parametrize("channels", [4, 6])
def test_order_stays_where_vectors_do_not_divide_it(channels: int) -> None:
    variances = np.exp(np.random.default_rng(1).normal(0, 2, (3, channels)))
    np.testing.assert_array_equal(grouped_order(variances, 4), np.arange(channels))
