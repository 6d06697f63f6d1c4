"""`collect` and `taps`: statistics against a direct numpy computation, grouping, pruning, errors."""

import itertools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import ir
from graphopt.calibrate import taps as taps_module
from graphopt.calibrate.collect import collect, linear_inputs
from graphopt.calibrate.feeds import Feed
from graphopt.calibrate.taps import Tap, TappedModel, grouped, rows
from graphopt.core.op import attach_bodies
from graphopt.core.statistics import Statistics
from graphopt.errors import CalibrationError, OutputError
from graphopt.passes.canonicalize import ops
from tests.support.arrays import activations, weight
from tests.support.canonical import CanonicalMlp

#: Inner values are float32 results of at most 40 products: relative error of their size, and squared for the moments.
RTOL = 40 * 2.0**-23


@pytest.fixture
def canonical_mlp(rng: np.random.Generator) -> CanonicalMlp:
    return CanonicalMlp.random(rng)


def _feeds(rng: np.random.Generator, shapes: list[tuple[int, int]]) -> list[Feed]:
    return [{"x": activations(rng, *shape, 24)} for shape in shapes]


def _check(statistics: Statistics, mlp: CanonicalMlp, feeds: list[Feed]) -> None:
    inputs = [mlp.inputs(f["x"]) for f in feeds]
    assert set(statistics.linears) == {"q", "k", "o"}
    for name, entry in statistics.linears.items():
        x = np.concatenate([i[name] for i in inputs])
        scale = np.abs(x).max()
        np.testing.assert_allclose(entry.absmax, np.abs(x).max(axis=0), atol=RTOL * scale, rtol=RTOL)
        np.testing.assert_allclose(entry.mean_square, (x**2).mean(axis=0), atol=RTOL * scale**2, rtol=RTOL)
        assert entry.tokens == len(x)
        if entry.second_moment is not None:
            np.testing.assert_allclose(entry.second_moment, x.T @ x / len(x), atol=RTOL * scale**2, rtol=RTOL)


@pytest.mark.parametrize("second_moment", [False, True])
def test_statistics_equal_numpy(canonical_mlp: CanonicalMlp, rng: np.random.Generator, second_moment: bool) -> None:
    feeds = _feeds(rng, [(1, 7), (2, 5), (1, 1)])
    statistics = collect(canonical_mlp.model, feeds, second_moment=second_moment, threads=1, source={"kind": "test"})
    _check(statistics, canonical_mlp, feeds)
    assert all((e.second_moment is not None) == second_moment for e in statistics.linears.values())
    assert statistics.source == {"kind": "test"}


def test_statistics_survive_their_file(canonical_mlp: CanonicalMlp, rng: np.random.Generator, tmp_path: Path) -> None:
    feeds = _feeds(rng, [(1, 7)])
    collect(canonical_mlp.model, feeds, second_moment=True, threads=1).save(tmp_path / "stats.npz")
    loaded = Statistics.load(tmp_path / "stats.npz")
    _check(loaded, canonical_mlp, feeds)
    assert loaded.linears["o"].second_moment is not None


def test_several_passes_equal_one(
    canonical_mlp: CanonicalMlp, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds, opened, calls = _feeds(rng, [(1, 7), (1, 9)]), [], []
    original = TappedModel.open

    def spy(self: TappedModel, group: list[Tap]) -> object:
        opened.append([tap.tensor for tap in group])
        return original(self, group)

    monkeypatch.setattr(TappedModel, "open", spy)
    one = collect(canonical_mlp.model, feeds, second_moment=True, threads=1)
    several = collect(
        canonical_mlp.model, feeds, second_moment=True, threads=1, budget=1, progress=lambda *a: calls.append(a)
    )
    assert opened == [["x", "r"], ["x"], ["r"]]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name, entry in one.linears.items():
        np.testing.assert_array_equal(several.linears[name].absmax, entry.absmax)
        np.testing.assert_array_equal(several.linears[name].mean_square, entry.mean_square)
        np.testing.assert_array_equal(several.linears[name].second_moment, entry.second_moment)


def test_the_model_is_not_changed(canonical_mlp: CanonicalMlp, rng: np.random.Generator) -> None:
    before = ir.text.dump(canonical_mlp.model)
    collect(canonical_mlp.model, _feeds(rng, [(1, 4)]), threads=1)
    assert ir.text.dump(canonical_mlp.model) == before


def test_linears_with_the_same_input_share_a_tap(canonical_mlp: CanonicalMlp) -> None:
    assert linear_inputs(canonical_mlp.model) == {Tap("x", 24): ["q", "k"], Tap("r", 40): ["o"]}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_activations_name_the_layer(
    canonical_mlp: CanonicalMlp, rng: np.random.Generator, poison: float
) -> None:
    feeds = _feeds(rng, [(1, 7), (1, 7)])
    feeds[1]["x"][0, 3, 5] = poison
    with pytest.raises(CalibrationError, match="input of linear 'q' holds NaN or Inf"):
        collect(canonical_mlp.model, feeds, threads=1)


def test_nothing_to_do_is_an_error(canonical_mlp: CanonicalMlp, rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="no calibration samples"):
        collect(canonical_mlp.model, [])
    x = gs.Variable("x", np.float32, [2])
    empty = ir.Model(
        gs.Graph([gs.Node("Relu", "r", inputs=[x], outputs=[gs.Variable("y", np.float32, [2])])], [x], opset=18)
    )
    with pytest.raises(CalibrationError, match="no linear layers"):
        collect(empty, _feeds(rng, [(1, 7)]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types_are_observed_in_float32(rng: np.random.Generator, dtype: type) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, half, y = (
        gs.Variable("x", np.float32, ["n", 24]),
        gs.Variable("h", kind, ["n", 24]),
        gs.Variable("y", kind, ["n", 8]),
    )
    cast = gs.Node("Cast", "cast", {"to": kind}, [x], [half])
    linear = ops.LINEAR.node("fc", [half, ir.WeightStore().put("w", weight(rng, 24, 8, dtype=dtype))], [y])
    model = ir.Model(gs.Graph([cast, linear], [x], [y], opset=18))
    attach_bodies(model, ops.OPS)
    feed = activations(rng, 9, 24)
    expected = np.abs(feed.astype(dtype).astype(np.float32)).max(axis=0)
    np.testing.assert_array_equal(collect(model, [{"x": feed}], threads=1).linears["fc"].absmax, expected)


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 50), st.integers(1, 20_000))
def test_groups_keep_the_budget_and_the_order(channels: list[int], row_count: int, budget: int) -> None:
    taps = [Tap(str(i), c) for i, c in enumerate(channels)]
    groups = grouped(taps, row_count, budget)
    assert [tap for group in groups for tap in group] == taps
    sizes = [[4 * row_count * tap.channels for tap in group] for group in groups]
    assert all(sum(s) <= budget or len(s) == 1 for s in sizes)
    assert all(sum(a) + b[0] > budget for a, b in itertools.pairwise(sizes))


def test_second_moments_count_in_the_budget() -> None:
    taps = [Tap("a", 10), Tap("b", 10)]
    assert grouped(taps, 1, 800, extra={"a": 400, "b": 400}) == [[taps[0]], [taps[1]]]
    assert grouped(taps, 1, 880, extra={"a": 400, "b": 400}) == [taps]


def test_rows_of_a_feed(rng: np.random.Generator) -> None:
    assert rows({"input_ids": np.array([[3, 1, 2]]), "past.0": rng.standard_normal((1, 2, 900, 4))}) == 3
    assert rows({"x": rng.standard_normal((2, 5, 16)), "step": np.array(4)}) == 10
    assert rows({"x": rng.standard_normal((0, 16))}) == 1


def test_a_group_runs_only_what_it_needs(canonical_mlp: CanonicalMlp, rng: np.random.Generator, tmp_path: Path) -> None:
    with TappedModel(canonical_mlp.model, threads=1) as tapped:
        session = tapped.open([Tap("q", 40)])
        assert tapped._folder is not None
        proto = onnx.load(Path(tapped._folder.name) / "taps.onnx")
        got = session.run({"x": activations(rng, 1, 6, 24)})
    assert [n.name for n in proto.graph.node] == ["q", "graphopt_tap:q"]
    assert [t.name for t in proto.graph.initializer] == ["wq"]
    assert got["q"].shape == (1, 6, 40)
    assert not Path(tapped._folder.name).exists()


def test_a_full_temporary_folder_is_named_and_left_empty(
    canonical_mlp: CanonicalMlp, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "taps.onnx":
            raise OSError(28, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device; point TMPDIR"):
        collect(canonical_mlp.model, _feeds(rng, [(1, 4)]), threads=1)
    assert not list(tmp_path.iterdir())


def test_a_subgraph_keeps_what_it_reads_from_outside(rng: np.random.Generator, tmp_path: Path) -> None:
    source = """<ir_version: 8, opset_import: ["": 18]>
        m (float[n, 16] x, bool cond, float[n, 16] unused) => (float[n, 16] z) {
            outer = Relu(x)
            y = If (cond) <
                then_branch = a () => (float[n, 16] t) { t = Neg(outer) },
                else_branch = b () => (float[n, 16] e) { e = Identity(outer) }
            >
            z = Abs(y)
        }"""
    onnx.save(onnx.parser.parse_model(source), tmp_path / "m.onnx")
    x = activations(rng, 4, 16)
    with TappedModel(ir.load(tmp_path / "m.onnx"), threads=1) as tapped:
        got = tapped.open([Tap("y", 16)]).run({"x": x, "cond": np.array(True), "unused": x})
    np.testing.assert_array_equal(got["y"], -np.maximum(x, 0))


def test_memory_is_bounded_by_the_budget(canonical_mlp: CanonicalMlp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two runs at most one group's values exist: the collector holds none of an earlier group."""
    held: list[int] = []
    original = taps_module.TapSession.run

    def spy(self: taps_module.TapSession, feed: Feed) -> dict[str, np.ndarray]:
        values = original(self, feed)
        held.append(sum(v.nbytes for v in values.values()))
        return values

    monkeypatch.setattr(taps_module.TapSession, "run", spy)
    feed = {"x": activations(np.random.default_rng(0), 1, 100, 24)}
    budget = 100 * 40 * 4
    collect(canonical_mlp.model, [feed] * 2, budget=budget, threads=1)
    assert held == [100 * 24 * 4] * 2 + [100 * 40 * 4] * 2
    assert max(held) <= budget
