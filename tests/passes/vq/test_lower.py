"""Lowering: which ops come out, what they share, and that the calibrated model is nearer than the uncalibrated one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrate import collect
from graphopt.core.jobs import at_most
from graphopt.core.op import attach_bodies
from graphopt.core.processes import in_processes
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.errors import CalibrationError, ModelError
from graphopt.ir import save, weights
from graphopt.passes import OPS
from graphopt.passes.vq import lower
from graphopt.passes.vq.config import VQConfig
from graphopt.passes.vq.lower import SCHEME
from tests.support.arrays import activations
from tests.support.canonical import CanonicalMlp
from tests.support.runtime import run_ort


def lowered(mlp: CanonicalMlp, config: VQConfig, statistics: Statistics | None = None) -> Report:
    report = Report()
    SCHEME.lower(mlp.model, dict.fromkeys(("q", "k", "o"), config), statistics, report, dry_run=False)
    attach_bodies(mlp.model, OPS)
    return report


def test_linears_of_one_tensor_share_its_transform(rng: np.random.Generator) -> None:
    mlp = CanonicalMlp.random(rng)
    lowered(mlp, VQConfig.model_validate({"codebook": "e8"}))
    nodes = {n.name: n for n in mlp.model.graph.nodes}
    transforms = [n for n in nodes.values() if n.op == "VQHadamard"]
    assert len(transforms) == 2
    assert nodes["q"].inputs[0] is nodes["k"].inputs[0]
    assert nodes["o"].inputs[0] is not nodes["q"].inputs[0]
    assert nodes["q"].op == "VQLinearE8"


@pytest.mark.parametrize(
    "settings", [{"codebook": "e8"}, {"vector": 4, "bits": 6}, {"vector": 2, "bits": 7, "tile": 0}]
)
def test_calibration_pays(rng: np.random.Generator, settings: dict[str, object], tmp_path: Path) -> None:
    seed = int(rng.integers(2**31))
    x = activations(rng, 6, 40, 24)
    config = VQConfig.model_validate(settings)
    original = CanonicalMlp.random(np.random.default_rng(seed))
    statistics = collect(original.model, [{"x": part[None]} for part in x], second_moment=True)
    expected = run_ort(save(original.model, tmp_path / "a.onnx")[0], {"x": x})
    errors = []
    for given in (None, statistics):
        mlp = CanonicalMlp.random(np.random.default_rng(seed))
        report = lowered(mlp, config, given)
        assert all("gptq" in f.reason if given else "nearest" in f.reason for f in report.findings)
        got = run_ort(save(mlp.model, tmp_path / "b.onnx")[0], {"x": x})
        errors.append([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, expected, strict=True)])
    assert all(calibrated < plain for plain, calibrated in zip(*errors, strict=True))


def test_progress_names_each_linear(rng: np.random.Generator) -> None:
    heard: list[str] = []
    report = Report(on_progress=heard.append)
    SCHEME.lower(CanonicalMlp.random(rng).model, dict.fromkeys("qko", VQConfig(rounds=0)), None, report, dry_run=False)
    assert heard == ["lower-vq: 1 of 3, q", "lower-vq: 2 of 3, k", "lower-vq: 3 of 3, o"]


def test_gptq_needs_second_moments(rng: np.random.Generator) -> None:
    mlp = CanonicalMlp.random(rng)
    with pytest.raises(CalibrationError, match="'q' needs statistics with second moments"):
        lowered(mlp, VQConfig(rounding="gptq"))


def test_the_seed_decides(rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**31))
    made = []
    for config in (VQConfig(), VQConfig(), VQConfig(seed=1)):
        mlp = CanonicalMlp.random(np.random.default_rng(seed))
        lowered(mlp, config)
        node = next(n for n in mlp.model.graph.nodes if n.name == "q")
        made.append(weights.read(node.inputs[2]).tobytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("settings", [{"codebook": "e8"}, {"vector": 2, "bits": 5, "tile": 32}], ids=str)
@pytest.mark.parametrize("calibrated", [True, False])
def test_processes_change_nothing(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, Any],
    calibrated: bool,
) -> None:
    """Down to the bytes of the file, with weights in files, moments and Hadamard transforms."""
    monkeypatch.setattr(lower, "_WORTH", 1)
    seed = int(rng.integers(2**31))
    used, files = [], []
    monkeypatch.setattr(lower, "in_processes", lambda tasks, n: used.append(n) or in_processes(tasks, n))
    for jobs in (1, 2, 3):
        mlp = CanonicalMlp.random(np.random.default_rng(seed))
        x = activations(np.random.default_rng(seed), 6, 40, 24)
        statistics = collect(mlp.model, [{"x": x}], second_moment=True) if calibrated else None
        with at_most(jobs):
            lowered(mlp, VQConfig.model_validate(settings), statistics)
        (folder := tmp_path / str(jobs)).mkdir()
        written = save(mlp.model, folder / "m.onnx")
        files.append([path.read_bytes() for path in written])
    assert used == [1, 2, 3]
    assert files[0] == files[1] == files[2]


def test_an_error_in_a_process_names_the_weight(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "_WORTH", 1)
    mlp = CanonicalMlp.random(rng)
    node = next(n for n in mlp.model.graph.nodes if n.name == "k")
    broken = np.array(weights.read(node.inputs[1]))
    broken[3, 3] = np.nan
    node.inputs[1] = mlp.model.store.put("broken", broken)
    with at_most(2), pytest.raises(ModelError, match="'broken' of 'k' holds NaN or Inf"):
        lowered(mlp, VQConfig())
