"""Every scheme, found through the catalogue: settings, presets, lowering of a decoder and an encoder, refusals."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import yaml
from pydantic import ValidationError

from graphopt.calibrate import collect
from graphopt.compile import canonicalize, optimize
from graphopt.core.canonical import linears
from graphopt.core.op import custom_nodes
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.core.scheme import Scheme
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.errors import CalibrationError, GraphOptError, ModelError
from graphopt.ir import Model, load, save
from graphopt.models.bert import BertConfig, bert_model
from graphopt.models.llama import llama_model
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import SCHEMES, fused
from tests.support.arrays import activations, weight
from tests.support.rewrite import parse
from tests.support.runtime import run_ort

#: A quantized model resembles the original; a wrong graph is off by about 1 in this measure, ||a - b|| / ||b||.
RESEMBLES = 0.3
#: The same for presets of 2 bits per weight.
RESEMBLES_TWO_BITS = {"vq-aqlm2": 0.5, "vq-gptvq2": 0.5}
#: Presets that promise it only where they know the outlier channels of these models.
NEED_CALIBRATION = {
    *("mixq-w4a8", "mixq-w4a4"),
    *("vq-quip4", "vq-aqlm2", "vq-gptvq2"),
    *("mant-w4a16", "mant-w4a8", "mant-int8", "nf4", "int4"),
}
WIDTH, VOCABULARY, HEADS, LAYERS = 64, 128, 4, 2

PRESETS = [(scheme, preset) for scheme in SCHEMES.values() for preset in scheme.presets]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
by_preset = pytest.mark.parametrize(("scheme", "preset"), PRESETS, ids=[p for _, p in PRESETS])


def decoder() -> Model:
    config = llama_config(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
    )
    return llama_model(config, RandomWeights(config, 1, outliers=3))


def encoder() -> Model:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=32,
    )
    return bert_model(config, RandomWeights(config, 1, outliers=3))


BUILDERS: dict[str, Callable[[], Model]] = {"decoder": decoder, "encoder": encoder}
by_model = pytest.mark.parametrize("built", BUILDERS)


def feeds(model: Model, rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    ids = rng.integers(0, VOCABULARY, (batch, length))
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(length), ids.shape).copy(),
        "token_type_ids": np.zeros_like(ids),
    }
    empty = np.zeros((batch, 2, 0, WIDTH // HEADS), np.float32)
    return {t.name: known.get(t.name, empty) for t in model.graph.inputs}


@dataclass(frozen=True)
class Optimized:
    """A model that went through a preset: the file, and the linears that the report says were rewritten."""

    path: Path
    rewritten: set[str]


class Workshop:
    """What several tests read, made once: codebooks of thousands of entries take their time.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.statistics = functools.cache(self._statistics)
        self.original = functools.cache(self._original)
        self.optimized = functools.cache(self._optimized)

    def _statistics(self, built: str) -> Statistics:
        """Statistics of every linear on random tokens."""
        model, rng = BUILDERS[built](), np.random.default_rng(5)
        canonicalize(model)
        return collect(model, [feeds(model, rng, 4, 16) for _ in range(4)], second_moment=True)

    def _original(self, built: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Random inputs of the model, so many that one unlucky token does not decide, and its outputs."""
        model = BUILDERS[built]()
        given = feeds(model, np.random.default_rng(6), 8, 16)
        return given, run_ort(save(model, self._folder / f"{built}.onnx")[0], given)

    def _optimized(self, preset: str, built: str, calibrated: bool) -> Optimized:
        scheme = next(s for s in SCHEMES.values() if preset in s.presets)
        model, folder = BUILDERS[built](), self._folder / f"{preset}-{built}-{calibrated}"
        folder.mkdir()
        report = optimize(model, Recipe.preset(preset, SCHEMES), self.statistics(built) if calibrated else None)
        rewritten = {f.node for f in report.findings if f.rule == scheme.name and f.status == "rewritten"}
        return Optimized(save(model, folder / "m.onnx", external_data=True)[0], rewritten)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("schemes"))


def test_schemes_are_registered_under_their_names() -> None:
    assert SCHEMES
    assert all(name == scheme.name for name, scheme in SCHEMES.items())
    presets = [preset for scheme in SCHEMES.values() for preset in scheme.presets]
    assert len(set(presets)) == len(presets) > 0


@by_preset
def test_settings_survive_yaml(scheme: Scheme, preset: str) -> None:
    for config in (rule.config for rule in Recipe.preset(preset, SCHEMES).rules):
        again = scheme.config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
        assert again == config
        assert hash(again) == hash(config), "settings must be hashable: linears with equal ones share their input"


@by_scheme
def test_settings_have_defaults_and_descriptions_and_refuse_what_they_do_not_know(scheme: Scheme) -> None:
    scheme.config()
    assert scheme.config.model_config.get("extra") == "forbid"
    with pytest.raises(ValidationError):
        scheme.config.model_validate({"no such setting": 1})


@by_preset
@by_model
@pytest.mark.parametrize("calibrated", [False, True])
def test_lowers_every_linear_of_tiny_models(
    scheme: Scheme, preset: str, built: str, calibrated: bool, workshop: Workshop
) -> None:
    done = workshop.optimized(preset, built, calibrated)
    assert done.rewritten == set(workshop.statistics(built).linears)
    model = load(done.path)
    assert not linears(model)
    # A scheme may take another's ops for its inputs, but its linears are its own.
    inputs = {op.name for other in SCHEMES.values() for op in other.ops if op.family != "Linear"}
    assert {n.op for n in custom_nodes(model)} - inputs <= {op.name for op in (*scheme.ops, *fused.OPS)}
    given, before = workshop.original(built)
    for a, b in zip(run_ort(done.path, given), before, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.isfinite(a).all()
        assert not np.array_equal(a, b)
        if calibrated or preset not in NEED_CALIBRATION:
            assert np.linalg.norm(a - b) < RESEMBLES_TWO_BITS.get(preset, RESEMBLES) * np.linalg.norm(b)


@by_preset
@by_model
def test_optimizing_the_result_adds_and_removes_nothing(
    scheme: Scheme, preset: str, built: str, workshop: Workshop
) -> None:
    path = workshop.optimized(preset, built, False).path
    again = load(path)
    report = optimize(again, Recipe.preset(preset, SCHEMES))
    assert not [f for f in report.findings if f.rule == scheme.name]
    kinds = [Counter(n.op for n in m.graph.nodes) for m in (again, load(path))]
    assert kinds[0] == kinds[1]


@by_preset
@by_model
def test_dry_run_says_what_a_run_does(scheme: Scheme, preset: str, built: str, workshop: Workshop) -> None:
    model, canonical = BUILDERS[built](), BUILDERS[built]()
    canonicalize(canonical)
    report = optimize(model, Recipe.preset(preset, SCHEMES), dry_run=True)
    planned = {f.node for f in report.findings if f.rule == scheme.name and f.status == "rewritten"}
    assert planned == workshop.optimized(preset, built, False).rewritten != set()
    assert {n.op for n in custom_nodes(model)} == {n.op for n in custom_nodes(canonical)}


@by_preset
def test_the_same_run_gives_the_same_file(scheme: Scheme, preset: str, workshop: Workshop, tmp_path: Path) -> None:
    model = decoder()
    optimize(model, Recipe.preset(preset, SCHEMES))
    save(model, tmp_path / "m.onnx", external_data=True)
    first = workshop.optimized(preset, "decoder", False).path.parent
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2
    assert all((first / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def one_linear(rng: np.random.Generator, change: Callable[[np.ndarray], np.ndarray] = lambda w: w) -> Model:
    model = parse("g (float[n, 64] x, float[64, 32] free) => (float[n, 32] y) { [lin] y = MatMul(x, free) }")
    model.graph.nodes[0].inputs[1] = gs.Constant("w", change(weight(rng, 64, 32)))
    return model


def lower_alone(scheme: Scheme, model: Model, statistics: Statistics | None = None) -> Report:
    """Lower a canonical model's only linear with the scheme's defaults."""
    canonicalize(model)
    report = Report()
    names = [linear.name for linear in linears(model)]
    scheme.lower(model, {name: scheme.config() for name in names}, statistics, report, dry_run=False)
    return report


@by_scheme
def test_refusal_of_a_shared_weight_says_which(scheme: Scheme, rng: np.random.Generator) -> None:
    model = parse(
        "g (float[n, 64] x, int64[n] i, float[64, 64] free) => (float[n, 64] y, float[n, 64] e) "
        "{ [lin] y = MatMul(x, free) [embed] e = Gather(free, i) }"
    )
    shared = gs.Constant("w", weight(rng, 64, 64))
    for node, position in ((model.graph.nodes[0], 1), (model.graph.nodes[1], 0)):
        node.inputs[position] = shared
    report = lower_alone(scheme, model)
    assert [(f.node, f.status) for f in report.findings] == [("lin", "skipped")]
    assert "'w'" in report.findings[0].reason
    assert "'embed'" in report.findings[0].reason
    assert [linear.name for linear in linears(model)] == ["lin"]


@by_scheme
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(scheme: Scheme, rng: np.random.Generator, value: float) -> None:
    def spoil(w: np.ndarray) -> np.ndarray:
        w[3, 7] = value
        return w

    with pytest.raises(ModelError, match=r"'w'.*(NaN|Inf|finite)"):
        lower_alone(scheme, one_linear(rng, spoil))


@by_scheme
@pytest.mark.parametrize("size", [0, 1e-40])
def test_output_channels_that_have_faded(scheme: Scheme, size: float, rng: np.random.Generator, tmp_path: Path) -> None:
    """Weight decay leaves rows of denormal numbers, pruning rows of zeros; the rows beside them stay what they were."""
    w = rng.standard_normal((64, 32)).astype(np.float32)
    w[:, ::2] *= np.float32(size)
    model = one_linear(rng, lambda _: w)
    optimize(model, Recipe.parse({"version": 1, "layers": [{"match": "*", "scheme": scheme.name}]}, SCHEMES, "r"))
    x = rng.standard_normal((50, 64)).astype(np.float32)
    (y,) = run_ort(save(model, tmp_path / "m.onnx")[0], {"x": x, "free": w})
    assert np.abs(y[:, ::2]).max() < 1e-30
    exact = (x @ w)[:, 1::2]
    assert np.linalg.norm(y[:, 1::2] - exact) < RESEMBLES * np.linalg.norm(exact)


def foreign(rng: np.random.Generator, name: str, channels: int) -> Statistics:
    x = activations(rng, 20, channels).astype(np.float64)
    return Statistics({name: LinearStatistics(np.abs(x).max(0).astype(np.float32), (x**2).mean(0), 20)})


@by_scheme
@pytest.mark.parametrize(("name", "channels", "part"), [("other", 64, "'lin'"), ("lin", 63, "63 channels")])
def test_statistics_of_another_model(
    scheme: Scheme, rng: np.random.Generator, name: str, channels: int, part: str
) -> None:
    with pytest.raises(CalibrationError) as e:
        lower_alone(scheme, one_linear(rng), foreign(rng, name, channels))
    assert part in str(e.value)


@by_scheme
@pytest.mark.parametrize("shape", [(0, 32), (64, 0)])
def test_zero_sized_weights_are_refused_not_lowered(scheme: Scheme, rng: np.random.Generator, shape: Any) -> None:
    rows, columns = shape
    model = parse(
        f"g (float[n, {rows}] x, float[{rows}, {columns}] free) => (float[n, {columns}] y)"
        "{ [lin] y = MatMul(x, free) }"
    )
    model.graph.nodes[0].inputs[1] = gs.Constant("w", np.zeros(shape, np.float32))
    report = lower_alone(scheme, model)
    assert not [f for f in report.findings if f.status == "rewritten"]
    assert not [n for n in custom_nodes(model) if n.op in {op.name for op in scheme.ops}]


@by_scheme
def test_errors_are_the_users(scheme: Scheme, rng: np.random.Generator) -> None:
    """Whatever is wrong with statistics or weights is an error of the user, with exit code 2."""
    with pytest.raises(GraphOptError):
        lower_alone(scheme, one_linear(rng), foreign(rng, "other", 64))
