"""Inputs by a plan's manifest are those that its model declares."""

from dataclasses import replace
from pathlib import Path

import pytest

from graphopt import ir
from graphopt.calibrate.feeds import declared
from graphopt.engine import manifest as manifests
from graphopt.errors import EngineError
from graphopt.runners.plan import plan_inputs
from tests.support.decoders import with_static_cache, write_decoder
from tests.support.host_engine import write_plan


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_they_are_what_the_model_declares(tmp_path: Path, static: bool) -> None:
    model = write_decoder(tmp_path / "m.onnx")
    if static:
        model = with_static_cache(model, tmp_path / "static.onnx", capacity=32)
    plan = write_plan(tmp_path / "m.plan", model)
    found = plan_inputs(manifests.read(plan), plan)
    wanted = [
        (i.name, i.dtype, tuple(d if isinstance(d, int) else None for d in i.shape), i.role)
        for i in declared(ir.load(model))
    ]
    assert sorted((i.name, i.dtype, i.shape, i.role) for i in found) == sorted(wanted)
    assert {i.role for i in found} == ({None, "cache", "start"} if static else {None})


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "m.plan", write_decoder(tmp_path / "m.onnx"))
    manifest = manifests.read(plan)
    odd = replace(manifest, inputs=(replace(manifest.inputs[0], dtype="FP4"),))
    with pytest.raises(EngineError, match=r"has type FP4, which cannot be passed"):
        plan_inputs(odd, plan)
