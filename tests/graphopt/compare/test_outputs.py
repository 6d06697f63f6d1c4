from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import ir
from graphopt.calibrate import taps
from graphopt.compare.metrics import Tolerance
from graphopt.compare.outputs import compare_models
from graphopt.errors import ModelError
from tests.support.arrays import activations, weight

MLP = """m (float[n, 24] x) => (float[n, 8] y, float[n, 40] h) {
    a = MatMul(x, wa)
    h = Relu(a)
    y = MatMul(h, wb)
}"""


def _write(path: Path, graph: str = MLP, **initializers: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in initializers.items())
    onnx.save(proto, path)
    return path


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"wa": weight(rng, 24, 40), "wb": weight(rng, 40, 8)}


@pytest.fixture
def feeds(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"x": activations(rng, 9, 24)} for _ in range(3)]


def test_a_model_equals_itself(tmp_path: Path, weights: dict, feeds: list) -> None:
    path = _write(tmp_path / "a.onnx", **weights)
    result = compare_models(path, path, feeds, Tolerance(rtol=0), per_layer=True, threads=1)
    assert result.passed
    assert [d.name for d in result.outputs] == ["y", "h"]
    assert [d.name for d in result.layers] == ["a", "y"]
    assert all(d.max_abs == 0 for d in (*result.outputs, *result.layers))
    assert (result.samples, result.missing) == (3, ())


def test_differences_equal_numpy_and_stay_where_they_are(tmp_path: Path, weights: dict, feeds: list) -> None:
    changed = weights | {"wb": weights["wb"] * np.float32(1.5)}
    calls: list[tuple[int, int]] = []
    result = compare_models(
        _write(tmp_path / "a.onnx", **changed),
        _write(tmp_path / "b.onnx", **weights),
        feeds,
        Tolerance(rtol=1e-6),
        per_layer=True,
        threads=1,
        progress=lambda *a: calls.append(a),
    )
    assert not result.passed
    y, h = result.outputs
    assert y.normalized == pytest.approx(0.5, rel=1e-5)
    assert (y.passed, h.passed) == (False, True)
    assert [(d.name, d.passed) for d in result.layers] == [("a", True), ("y", False)]
    expected = np.concatenate([np.maximum(f["x"] @ weights["wa"], 0) @ weights["wb"] for f in feeds]) / 2
    assert y.max_abs == pytest.approx(np.abs(expected).max(), rel=1e-5)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert not result.to_dict()["passed"]


def test_layers_in_small_groups_are_the_same(
    tmp_path: Path, weights: dict, feeds: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (
        _write(tmp_path / "a.onnx", **{n: w * np.float32(1.01) for n, w in weights.items()}),
        _write(tmp_path / "b.onnx", **weights),
    )
    once = compare_models(*paths, feeds, Tolerance(), per_layer=True, threads=1)
    monkeypatch.setattr(taps, "BUDGET", 1)
    assert compare_models(*paths, feeds, Tolerance(), per_layer=True, threads=1).layers == once.layers


def test_only_layers_that_both_have_are_compared(tmp_path: Path, weights: dict, feeds: list) -> None:
    renamed = MLP.replace("a =", "other =").replace("Relu(a)", "Relu(other)")
    result = compare_models(
        _write(tmp_path / "a.onnx", renamed, **weights),
        _write(tmp_path / "b.onnx", **weights),
        feeds,
        Tolerance(),
        per_layer=True,
        threads=1,
    )
    assert [d.name for d in result.layers] == ["y"]


def test_a_lost_output_fails(tmp_path: Path, weights: dict, feeds: list) -> None:
    graph = MLP.replace(", float[n, 40] h)", ")")
    pair = _write(tmp_path / "a.onnx", graph, **weights), _write(tmp_path / "b.onnx", **weights)
    result = compare_models(*pair, feeds, Tolerance(), threads=1)
    assert not result.passed
    assert result.missing == ("h",)
    assert compare_models(*reversed(pair), feeds, Tolerance(), threads=1).passed


def test_another_shape_fails(tmp_path: Path, weights: dict, feeds: list, rng: np.random.Generator) -> None:
    wide = weights | {"wb": weight(rng, 40, 16)}
    result = compare_models(
        _write(tmp_path / "a.onnx", MLP.replace("[n, 8]", "[n, 16]"), **wide),
        _write(tmp_path / "b.onnx", **weights),
        feeds,
        Tolerance("cosine", 2, 2),
        threads=1,
    )
    assert result.outputs[0].reason == "shape [9, 16] against [9, 8]"
    assert not result.passed


def test_models_that_cannot_be_compared_are_named(tmp_path: Path, weights: dict, feeds: list) -> None:
    base = _write(tmp_path / "b.onnx", **weights)
    other = _write(tmp_path / "a.onnx", MLP.replace(" x)", " xs)").replace("(x,", "(xs,"), **weights)
    with pytest.raises(ModelError, match=r"a\.onnx has no input 'x', which .*b\.onnx has; did you mean 'xs'"):
        compare_models(other, base, feeds, Tolerance())
    more = _write(tmp_path / "c.onnx", MLP.replace(" x)", " x, float[n] step)"), **weights)
    with pytest.raises(ModelError, match=r"c\.onnx has an input 'step', which .*b\.onnx lacks"):
        compare_models(more, base, feeds, Tolerance())
    apart = _write(tmp_path / "d.onnx", MLP.replace(" y", " q").replace(" h", " p").replace("(h", "(p"), **weights)
    with pytest.raises(ModelError, match="have no output in common"):
        compare_models(apart, base, feeds, Tolerance())


def test_comparing_changes_no_file(tmp_path: Path, weights: dict, feeds: list) -> None:
    path = _write(tmp_path / "a.onnx", **weights)
    before = ir.text.dump(ir.load(path)), path.read_bytes()
    compare_models(path, path, feeds, Tolerance(), per_layer=True, threads=1)
    assert (ir.text.dump(ir.load(path)), path.read_bytes()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
