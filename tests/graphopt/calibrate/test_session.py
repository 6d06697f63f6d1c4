import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.calibrate.session import Session
from graphopt.errors import GraphOptError, ModelError
from tests.support.arrays import activations

SCALE = "m (float[n, k] x) => (float[n, k] y, float[n, k] z) { y = Mul(x, x)\n z = Add(x, y) }"


@pytest.fixture
def squared(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{SCALE}'), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_outputs_come_by_name(squared: Path, rng: np.random.Generator) -> None:
    session, x = Session(squared, threads=1), activations(rng, 5, 16)
    assert session.outputs == ["y", "z"]
    got = session.run({"x": x})
    np.testing.assert_array_equal(got["y"], x * x)
    np.testing.assert_allclose(got["z"], x + x * x, rtol=1e-6)
    assert list(session.run({"x": x}, ["z"])) == ["z"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx does not exist"):
        Session(tmp_path / "none.onnx")


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "no": 1]> m (float[2] x) => (float[2] y) { y = no.Op(x) }'
    )
    onnx.save(graph, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match=r"cannot open .*bad\.onnx: .*Op") as e:
        Session(tmp_path / "bad.onnx")
    assert "\n" not in str(e.value)


def test_a_wrong_feed_is_named(squared: Path, rng: np.random.Generator) -> None:
    session = Session(squared, threads=1)
    with pytest.raises(ModelError, match=r"cannot run .*m\.onnx: .*x"):
        session.run({"x": activations(rng, 5)})
    with pytest.raises(ModelError, match="cannot run"):
        session.run({"w": activations(rng, 5, 16)})


def test_without_onnx_runtime_the_message_says_how_to_get_it(squared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GraphOptError, match=r"needs ONNX Runtime; install it with: pip install 'graphopt\[runtime\]'"):
        Session(squared)
