"""Runners on the CPU agree about what a model says."""

from pathlib import Path

import numpy as np
import pytest

from graphopt import compile, ir
from graphopt.calibrate.feeds import from_tokens
from graphopt.core.recipe import Recipe
from graphopt.passes import SCHEMES
from graphopt.runners.host import ort_runner, reference_runner
from tests.support.decoders import CONFIG, write_decoder


@pytest.mark.parametrize("preset", [preset for scheme in SCHEMES.values() for preset in scheme.presets])
def test_every_preset_runs_in_onnx_reference(preset: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """At the opset of our own models, 18, of which onnx.reference lacks an operator."""
    model = ir.load(write_decoder(tmp_path / "model.onnx"))
    assert model.opset == 18
    compile.optimize(model, Recipe.preset(preset, SCHEMES))
    ir.save(model, tmp_path / "opt.onnx")
    with ort_runner(tmp_path / "opt.onnx", optimize=False, threads=1) as ort, reference_runner(ort.path) as reference:
        feed = from_tokens(ort.inputs, rng.integers(0, CONFIG.vocab_size, (1, 6)))
        (expected,), (logits,) = (r.infer(feed, ["logits"]).values() for r in (reference, ort))
    assert np.linalg.norm(logits - expected) <= 1e-3 * np.linalg.norm(expected)
