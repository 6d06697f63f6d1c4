"""Inputs by a plan's manifest are those that its model declares; runners of one engine do not disturb each other."""

from dataclasses import replace
from pathlib import Path

import pytest

from graphopt import ir
from graphopt.calibrate.feeds import declared
from graphopt.engine import manifest as manifests
from graphopt.engine.layers import LayerTime
from graphopt.engine.run import Runner as Engine
from graphopt.errors import EngineError
from graphopt.generate import Sampler, generate
from graphopt.runners import Decoder, open_runner
from graphopt.runners.plan import plan_inputs
from graphopt.runners.tensorrt import PlanRunner
from tests.support import host_engine
from tests.support.decoders import growing_profiles, static_profiles, with_static_cache, write_decoder
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


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_siblings_share_an_engine_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    """Two sequences, token by token in turn; the one whose runner was first ends first."""
    cuda = host_engine.install(monkeypatch)
    model, profiles = write_decoder(tmp_path / "m.onnx"), growing_profiles(((1, 8, 16), (0, 8, 32)))
    if static:
        model, profiles = with_static_cache(model, tmp_path / "static.onnx"), static_profiles(((1, 16, 16), 32))
    plan = write_plan(tmp_path / "m.plan", model, profiles)
    prompts = ([3, 1, 4], [1, 5, 9, 2, 6])
    with open_runner(model, threads=1) as alone:
        wanted = [generate(Decoder(alone), p, Sampler(), max_new_tokens=9).ids for p in prompts]
    first = PlanRunner(plan).__enter__()
    with first.sibling() as second:
        decoders = [Decoder(first), Decoder(second)]
        got: list[list[int]] = [[], []]
        for i, decoder in enumerate(decoders):
            decoder.begin(len(prompts[i]) + 8)
            got[i].append(int(decoder.feed(prompts[i])[0].argmax()))
        for step in range(8):
            for i, decoder in enumerate(decoders):
                if i == 0 and step == 4:
                    first.__exit__(None, None, None)
                if i == 1 or step < 4:
                    got[i].append(int(decoder.feed([got[i][-1]])[0].argmax()))
    assert (tuple(got[0]), tuple(got[1])) == (wanted[0][:5], wanted[1])
    assert (cuda.engines, cuda.contexts) == (1, 2)
    assert not cuda.memory


def test_layers_are_timed_in_a_context_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler that stayed would lengthen what is timed later."""
    cuda = host_engine.install(monkeypatch)
    model = write_decoder(tmp_path / "m.onnx")
    plan = write_plan(tmp_path / "m.plan", model, growing_profiles(((1, 1, 1), (0, 8, 32)), ((1, 8, 16), (0, 8, 32))))
    with Engine(plan) as runner:
        runner.fill(runner.shapes(profile=1))
        runner.capture()
        before = cuda.contexts
        assert runner.layer_times(runs=4) == [LayerTime("everything", "Session", 500.0)]
        assert cuda.contexts == before + 1
        assert runner.captured
        reports: list[str] = []
        monkeypatch.setattr(host_engine.HostContext, "_run", lambda self, shapes: reports.append(str(self.profiler)))
        runner.execute()
        assert reports == ["None"]
