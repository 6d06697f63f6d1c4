"""The cache in codes, end to end: calibrate, lower, and prefill and decode like the decoder with a growing cache."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import compile, ir
from graphopt.calibrate.attention import collect_attention
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.core.statistics import AttentionStatistics, Statistics
from graphopt.errors import ModelError, RecipeError
from graphopt.ir import kv_cache, weights
from graphopt.models.llama import build_llama
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from graphopt.passes.vq.cache import CODES, CodesConfig, _train
from graphopt.passes.vq.cache_ops import decode_cache, encode_cache
from tests.support.decoders import CONFIG, write_decoder
from tests.support.runtime import run_ort

TOKENS, CAPACITY = 24, 32


def growing_feed(ids: np.ndarray) -> dict[str, np.ndarray]:
    batch, length = ids.shape
    empty = np.zeros((batch, CONFIG.num_key_value_heads, 0, CONFIG.head_dim), np.float32)
    past = {f"past_key_values.{i}.{k}": empty for i in range(CONFIG.num_hidden_layers) for k in ("key", "value")}
    positions = np.broadcast_to(np.arange(length), ids.shape).copy()
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions, **past}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "m.onnx")


@pytest.fixture(scope="module")
def statistics(source: Path) -> Statistics:
    model = ir.load(source)
    compile.canonicalize(model)
    rng = np.random.default_rng(2)
    feeds = [growing_feed(rng.integers(0, CONFIG.vocab_size, (2, TOKENS))) for _ in range(12)]
    return Statistics(attentions=collect_attention(model, feeds))


def lowered(source: Path, path: Path, preset: str, statistics: Statistics | None) -> tuple[Path, Report]:
    model = ir.load(source)
    recipe = Recipe.preset("none", SCHEMES).with_cache(preset, {"capacity": CAPACITY}, CACHES)
    report = compile.optimize(model, recipe, statistics)
    return ir.save(model, path)[0], report


@pytest.mark.parametrize(("preset", "vector", "allowed"), [("cq4", 2, 0.1), ("cq2", 4, 0.4)])
def test_prefill_and_decode_resemble_the_growing_cache(
    source: Path, statistics: Statistics, tmp_path: Path, preset: str, vector: int, allowed: float
) -> None:
    path, report = lowered(source, tmp_path / "q.onnx", preset, statistics)
    model = ir.load(path)
    described = kv_cache.read(model.shell.metadata_props)
    assert described is not None
    assert (described.kind, described.bits, described.capacity) == ("vq", 8 / vector, CAPACITY)
    errors = [f.detail["value_error"] for f in report.findings if "value_error" in f.detail]
    assert len(errors) == CONFIG.num_hidden_layers
    ids = np.random.default_rng(8).integers(0, CONFIG.vocab_size, (2, TOKENS))
    expected = run_ort(source, growing_feed(ids))[0]
    shape = 2, CONFIG.num_key_value_heads, CAPACITY, CONFIG.head_dim // vector
    cache = {past: np.full(shape, 77, np.int8) for past, _ in described.pairs}
    got = []
    names = [t.name for t in model.graph.outputs]
    for first, last in ((0, 20), (20, 21), (21, 22), (22, 24)):
        feed = {"input_ids": ids[:, first:last], described.start: np.full(2, first, np.int32), **cache}
        outputs = dict(zip(names, run_ort(path, feed), strict=True))
        cache = {past: outputs[present] for past, present in described.pairs}
        got.append(outputs["logits"])
    logits = np.concatenate(got, axis=1)
    assert 1e-4 < np.linalg.norm(logits - expected) / np.linalg.norm(expected) < allowed


@pytest.mark.parametrize(
    ("change", "clause"),
    [(lambda book: book[:, :, :255], r"not \(Hkv, G, 256, v\)"), (lambda book: book * np.nan, "holds NaN or Inf")],
)
@pytest.mark.parametrize("place", [8, 9])
def test_damaged_codebooks_are_found_before_a_kernel_reads_them(
    source: Path, statistics: Statistics, place: int, change: Callable[[np.ndarray], np.ndarray], clause: str
) -> None:
    model = ir.load(source)
    recipe = Recipe.preset("none", SCHEMES).with_cache("cq2", {}, CACHES)
    compile.optimize(model, recipe, statistics)
    compile.check(model)
    node = next(n for n in model.graph.nodes if n.op == "VQCachedAttention")
    name = node.inputs[place].name
    node.inputs[place] = gs.Constant(name, np.ascontiguousarray(change(weights.read(node.inputs[place]))))
    with pytest.raises(ModelError, match=f"tensor '{name}' .* {clause}"):
        compile.check(model)


def test_without_keys_and_values_the_cache_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    _, report = lowered(source, tmp_path / "q.onnx", "cq4", None)
    reasons = [f.reason for f in report.findings if f.status == "skipped" and f.rule == "vq"]
    assert len(reasons) == CONFIG.num_hidden_layers
    assert all("graphopt calibrate --keys-values" in reason for reason in reasons)


def test_a_head_size_that_is_no_multiple_of_the_vector(tmp_path: Path) -> None:
    """All layers keep the cache that they have, and the report says why."""
    config = dataclasses.replace(CONFIG, head_dim=12)
    build_llama(config, RandomWeights(config, seed=3), tmp_path / "odd.onnx")
    model = ir.load(tmp_path / "odd.onnx")
    compile.canonicalize(model)
    heads = np.ones((300, CONFIG.num_key_value_heads, 12), np.float16)
    names = [n.name for n in model.graph.nodes if n.op == "Attention"]
    entry = AttentionStatistics(heads, heads, np.ones(heads.shape[:2], np.float32))
    recipe = Recipe.preset("none", SCHEMES).with_cache("cq4", {"vector": 8}, CACHES)
    report = compile.optimize(
        ir.load(tmp_path / "odd.onnx"), recipe, Statistics(attentions=dict.fromkeys(names, entry))
    )
    refused = [f.reason for f in report.findings if f.status == "skipped" and f.rule == "vq"]
    assert refused == ["its head size 12 is no multiple of vector 8"] * len(names)


def test_a_vector_that_does_not_exist() -> None:
    with pytest.raises(RecipeError, match="vector"):
        Recipe.preset("none", SCHEMES).with_cache("cq4", {"vector": 3}, CACHES)


@pytest.mark.parametrize(("part", "cost"), [("keys", "key_attention"), ("values", "attention")])
def test_tokens_whose_errors_cost_more_count_more(statistics: Statistics, part: str, cost: str) -> None:
    """With weighting, what attention's outputs depend on most is nearer to its entries than without."""
    name, entry = list(statistics.attentions.items())[-1]  # the first layer's values are those of few tokens
    weight = getattr(entry, cost)[..., None]
    exact = getattr(entry, part).astype(np.float32)
    errors = []
    for weighting in ("attention", "none"):
        book = _train(entry, CodesConfig(vector=4, weighting=weighting), name)[part == "values"]
        back = decode_cache(encode_cache(exact, book)[:, :, None], book)[:, :, 0]
        errors.append(float((np.square(exact - back) * weight).sum()))
    assert errors[0] < errors[1]


def test_statistics_without_costs_of_keys(statistics: Statistics) -> None:
    """Files from before they were measured: keys count as values do."""
    name, entry = next(iter(statistics.attentions.items()))
    old = dataclasses.replace(entry, key_attention=None)
    alike = dataclasses.replace(entry, key_attention=entry.attention)
    config = CodesConfig(vector=4)
    for one, other in zip(_train(old, config, name), _train(alike, config, name), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("preset", ["cq4", "cq2"])
def test_errors_of_arranged_keys_cost_less(source: Path, statistics: Statistics, tmp_path: Path, preset: str) -> None:
    """By the calibrated metric, with queries of some channels made large and keys of others."""
    rng = np.random.default_rng(5)
    skewed = {}
    for name, entry in statistics.attentions.items():
        size = entry.keys.shape[2] // 2
        large = np.tile(np.exp(rng.normal(0, 1.5, size)), 2).astype(np.float32)
        metric = np.tile(np.exp(rng.normal(0, 3, size)), 2) * np.ones((entry.keys.shape[1], 1))
        keys = np.repeat(entry.keys, 4, axis=0) * rng.uniform(0.5, 1.5, (len(entry.keys) * 4, 1, 1)) * large
        costs = (np.repeat(x, 4, axis=0) for x in (entry.values, entry.attention, entry.key_attention))
        skewed[name] = AttentionStatistics(keys.astype(np.float16), *costs, metric.astype(np.float32))
    totals = []
    for arranged in (True, False):
        model = ir.load(source)
        settings = {"arrange": arranged, "weighting": "none"}
        recipe = Recipe.preset("none", SCHEMES).with_cache(preset, settings, CACHES)
        report = compile.optimize(model, recipe, Statistics(attentions=skewed))
        total = 0.0
        for node in (n for n in model.graph.nodes if n.op == "VQCachedAttention"):
            entry, book = skewed[node.name], weights.read(node.inputs[8])
            keys, scale = entry.keys.astype(np.float32), np.ones(entry.keys.shape[1:])
            if arranged:
                notes = [f for f in report.findings if f.node == node.name and "reordered" in f.reason]
                assert notes and notes[0].detail["least_scale"] < 1 < notes[0].detail["greatest_scale"]
                cos = next(n for n in model.graph.nodes if n.op == "Gather" and n.outputs[0] is node.inputs[3])
                order = weights.read(cos.inputs[1])
                keys, metric = keys[..., order], entry.key_metric[:, order]
                scale = np.sqrt(metric / np.exp(np.log(metric).mean(axis=1, keepdims=True)))
                scale = np.clip(scale, 1 / 16, 16)
            back = decode_cache(encode_cache(keys * scale, book)[:, :, None], book)[:, :, 0] / scale
            metric = entry.key_metric[:, order] if arranged else entry.key_metric
            total += float((np.square(back - keys) * metric).sum() / (np.square(keys) * metric).sum())
        totals.append(total)
    assert totals[0] < 0.7 * totals[1]


def test_the_format_is_registered() -> None:
    assert CACHES[CODES.name] is CODES
    assert set(CODES.presets) == {"cq4", "cq2"}
