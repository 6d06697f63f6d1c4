"""`optimize --kv-cache kv-mant4`: a decoder that follows the exact one, what runtimes are told, and refusals."""

from pathlib import Path

import numpy as np
import pytest

from graphopt import compile
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.core.statistics import AttentionStatistics, Statistics
from graphopt.errors import CalibrationError
from graphopt.ir import kv_cache, save, weights
from graphopt.ir.model import Model
from graphopt.ir.weights import numpy_dtype, onnx_dtype
from graphopt.models.llama import llama_model
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES
from tests.support.runtime import run_ort

LAYERS, HEADS, SIZE, VOCABULARY, CAPACITY = 1, 2, 32, 80, 64


def decoder(size: int = SIZE, dtype: str = "float32") -> Model:
    config = llama_config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        head_dim=size,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
    )
    return llama_model(config, RandomWeights(config, 3, outliers=2), dtype=dtype)


def optimized(
    model: Model,
    cache: str = "kv-mant4",
    scheme: str = "none",
    statistics: Statistics | None = None,
    **settings: object,
) -> Report:
    return compile.optimize(model, Recipe.preset(scheme, SCHEMES).with_cache(cache, settings, CACHES), statistics)


def outcome(report: Report) -> list[tuple[str, str]]:
    return [(f.status, f.reason) for f in report.findings if f.stage == "kv-cache" and f.status != "note"]


def generate(path: Path, model: Model, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Return the logits of ``ids`` (B, S), given in the pieces that ``cuts`` separate."""
    (file, *_) = save(model, path)
    state = {}
    for t in model.graph.inputs:
        if t.name.startswith("past"):
            shape = [len(ids), *(d if isinstance(d, int) else CAPACITY for d in t.shape[1:])]
            state[t.name] = np.zeros(shape, numpy_dtype(onnx_dtype(t.dtype)))
    rows, names = [], [t.name for t in model.graph.outputs]
    for first, last in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        start = np.full(len(ids), first, np.int32)
        results = dict(
            zip(names, run_ort(file, {"input_ids": ids[:, first:last], "start": start, **state}), strict=True)
        )
        state = {name: results[name.replace("past_key_values", "present")] for name in state}
        rows.append(results["logits"])
    return np.concatenate(rows, axis=1)


#: A group loses 9 % of its length, keys and values do, in a small random model that has nothing but them to average
#: over; a wrong graph is off by about 1.
RESEMBLES = 0.2


def test_a_decoder_follows_the_exact_one(tmp_path: Path) -> None:
    """A prompt that ends behind a page, then token by token."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 35))
    logits = {}
    for cache in ("static", "kv-mant4"):
        model = decoder()
        report = optimized(model, cache)
        assert [status for status, _ in outcome(report)] == ["rewritten"] * LAYERS
        logits[cache] = generate(tmp_path / f"{cache}.onnx", model, ids, [33, 34])
    error = np.linalg.norm(logits["kv-mant4"] - logits["static"]) / np.linalg.norm(logits["static"])
    assert 0 < error < RESEMBLES


def test_what_runtimes_are_told(tmp_path: Path) -> None:
    model = decoder()
    optimized(model)
    cache = kv_cache.read(model.shell.metadata_props)
    assert cache is not None
    assert (cache.kind, cache.bits, cache.capacity) == ("kv-mant4", 4.5, None)
    assert len(cache.pairs) == 7 * LAYERS
    inputs, outputs = ({t.name: t for t in ports} for ports in (model.graph.inputs, model.graph.outputs))
    for past, present in cache.pairs:
        a, b = inputs[past], outputs[present]
        assert (a.dtype, list(a.shape)) == (b.dtype, list(b.shape))
        kinds = {"scale": np.float16, "sink": np.float32}
        assert numpy_dtype(onnx_dtype(a.dtype)) == kinds.get(past.rpartition(".")[2], np.int8)
    assert list(inputs["past_key_values.0.key"].shape[1:]) == [HEADS, kv_cache.CAPACITY, SIZE // 2]
    assert list(inputs["past_key_values.0.value.window"].shape[1:]) == [HEADS, 32, SIZE]


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [(48, {}, "head size 48 is no multiple of 32"), (32, {"capacity": 80}, "capacity 80 is no multiple of 32")],
)
def test_what_does_not_fit_stays_as_it_is(size: int, settings: dict[str, int], message: str) -> None:
    model = decoder(size)
    assert {status for status, reason in outcome(optimized(model, **settings)) if message in reason} == {"skipped"}
    assert not [n for n in model.graph.nodes if n.op == "MANTCachedAttention"]


def test_it_combines_with_weights(tmp_path: Path) -> None:
    model = decoder()
    optimized(model, scheme="mant-w4a16", capacity=CAPACITY)
    kinds = {n.op for n in model.graph.nodes if n.domain == "graphopt"}
    assert kinds == {"MANTLinear", "MANTCachedAttention", "FusedRMSNorm", "FusedAddRMSNorm", "FusedGatedSilu"}
    logits = generate(tmp_path / "m.onnx", model, np.random.default_rng(0).integers(0, VOCABULARY, (1, 40)), [])
    assert np.isfinite(logits).all()


def test_keys_are_centered_where_they_are_known() -> None:
    model = decoder()
    (report,) = [f for f in optimized(model).findings if f.status == "note" and "centered" in f.reason]
    keys, values = np.random.default_rng(0).standard_normal((2, 50, HEADS, SIZE)).astype(np.float16) + 3
    entry = AttentionStatistics(keys, values, np.ones(keys.shape[:2], np.float32))
    model = decoder()
    optimized(model, statistics=Statistics(attentions={report.node: entry}))
    node = next(n for n in model.graph.nodes if n.op == "MANTCachedAttention")
    np.testing.assert_allclose(weights.read(node.inputs[5]), keys.mean(axis=0, dtype=np.float32), rtol=1e-6)
    short = AttentionStatistics(keys[:, :1], values[:, :1], np.ones((50, 1), np.float32))
    with pytest.raises(CalibrationError, match="calibrate this very model"):
        optimized(decoder(), statistics=Statistics(attentions={report.node: short}))
