"""Real TensorRT-RTX builds on the CPU: plugins, profiles, manifest; and every way a build ends without one."""

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.engine import manifest, plugins
from graphopt.engine.build import BuildOptions, _timing_cache, build
from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import Messages
from graphopt.engine.profiles import Limits, Range
from graphopt.engine.progress import BuildStep
from graphopt.errors import EngineError, ModelError, OutputError, PluginError

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("rtx_flavour")]

FIXTURES = Path(__file__).parents[2] / "fixtures/exporters"
K = 64


def left_over(folder: Path) -> set[str]:
    """Names in ``folder`` that a finished or failed build should not leave."""
    return {p.name for p in folder.iterdir()} - {"mlp.onnx", "quantize.onnx", "model.onnx", "model.onnx.data"}


def test_plan_and_manifest_of_a_model_with_plugins(
    quantize_model: Callable[..., Path], plugin_library: Path, tmp_path: Path
) -> None:
    model, plan = quantize_model(count=2), tmp_path / "model.plan"
    options = BuildOptions(plugins=plugin_library, limits=Limits(batch=8), workspace_bytes=1 << 28)
    result = build(model, plan, options)
    assert left_over(tmp_path) == {"model.plan", "model.plan.json"}
    written = manifest.read(plan)
    assert written == result.manifest
    assert written.plan_sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert written.plan_bytes == plan.stat().st_size > 0
    assert (written.format, written.graphopt, written.flavour) == (1, graphopt.__version__, "rtx")
    assert written.source.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert written.plugins is not None
    assert written.plugins.sha256 == hashlib.sha256(plugin_library.read_bytes()).hexdigest()
    assert written.plugins.version == graphopt.__version__
    assert written.custom_ops == {"MixQQuantize": 2}
    assert written.plugin_layers == written.layers["PLUGIN_V3"] == 2
    assert written.targets == ("8.0", "8.6", "8.9", "12.0 and later")
    assert [(t.name, t.dtype, t.shape) for t in written.inputs] == [("x", "HALF", (-1, K))]
    assert [(t.dtype, t.shape) for t in written.outputs[:3]] == [
        ("INT8", (-1, K)), ("FLOAT", (-1, 1)), ("HALF", (-1, 16))
    ]  # fmt: skip
    assert written.profiles[0].ranges == {"x": Range((1, K), (4, K), (8, K))}
    assert written.workspace_bytes == 1 << 28
    assert written.build_seconds > 0
    assert written.peak_host_bytes > 50 << 20


def test_decoder_with_cache_gets_ranges_that_fit_together(tmp_path: Path) -> None:
    result = build(
        FIXTURES / "llama_dynamo18_kv.onnx", tmp_path / "m.plan", BuildOptions(limits=Limits(batch=2, seq=8, past=24))
    )
    (profile,) = result.manifest.profiles
    assert profile.ranges["input_ids"] == Range((1, 1), (1, 4), (2, 8))
    assert profile.ranges["attention_mask"] == Range((1, 1), (1, 16), (2, 32))
    assert profile.ranges["past_key_values.0.key"] == Range((1, 2, 0, 16), (1, 2, 12, 16), (2, 2, 24, 16))
    assert result.manifest.plugins is None
    assert {"logits", "present.0.key"} <= {t.name for t in result.manifest.outputs}


def test_explicit_profiles_targets_and_external_data(save_model: Callable[..., Path], tmp_path: Path) -> None:
    w = np.random.default_rng(3).standard_normal((K, 8)).astype(np.float32)
    model = save_model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, external=True)
    options = BuildOptions(
        min_shapes=("x:1x64", "x:16x64"), opt_shapes=("x:2x64", "x:32x64"), max_shapes=("x:4x64", "x:64x64"),
        compute_capabilities=("8.6", "8.9"), optimization_level=1, timing_cache=tmp_path / "timings",
    )  # fmt: skip
    result = build(model, tmp_path / "m.plan", options)
    assert [p.ranges["x"].max for p in result.manifest.profiles] == [(4, K), (64, K)]
    assert result.manifest.targets == ("8.6", "8.9")
    assert [d.location for d in result.manifest.source.external_data] == ["model.onnx.data"]
    assert any("the timing cache" in w for w in result.warnings)
    assert left_over(tmp_path) == {"m.plan", "m.plan.json"}


def test_static_model_needs_no_profile(save_model: Callable[..., Path], tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, K])]
    result = build(save_model([helper.make_node("Relu", ["x"], ["y"])], inputs=inputs), tmp_path / "m.plan")
    assert result.manifest.profiles == ()


def test_progress_counts_up_and_ends(mlp: Path, tmp_path: Path) -> None:
    steps: list[BuildStep] = []
    build(mlp, tmp_path / "m.plan", on_step=steps.append)
    whole = [s for s in steps if s.parent is None]
    assert {s.phase for s in whole} == {"Building engine"}
    assert [s.done for s in whole] == sorted(s.done for s in whole)
    assert whole[0].done == 0
    assert whole[-1].done == whole[-1].total
    for phase in {s.phase for s in steps}:
        assert any(s.done == s.total for s in steps if s.phase == phase)


def test_ctrl_c_ends_the_build_and_leaves_the_old_plan(mlp: Path, tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"old plan")
    seen: list[BuildStep] = []

    def interrupt_once(step: BuildStep) -> None:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(step)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(mlp, plan, on_step=interrupt_once)
    assert len(seen) < 20, "the build went on after the interrupt"
    assert plan.read_bytes() == b"old plan"
    assert left_over(tmp_path) == {"m.plan"}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failing_listener_ends_the_build_with_its_own_error(mlp: Path, tmp_path: Path) -> None:
    def fail(step: BuildStep) -> None:
        raise ZeroDivisionError("listener")

    with pytest.raises(ZeroDivisionError, match="listener"):
        build(mlp, tmp_path / "m.plan", on_step=fail)
    assert left_over(tmp_path) == set()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond ``size`` bytes fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_full_disk_leaves_the_old_plan_and_nothing_else(mlp: Path, tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    build(mlp, plan)
    old = plan.read_bytes(), manifest.path_for(plan).read_bytes()
    with largest_file(1000), pytest.raises(OutputError, match=r"cannot write .*m\.plan: .*nothing was changed"):
        build(mlp, plan)
    assert (plan.read_bytes(), manifest.path_for(plan).read_bytes()) == old
    assert left_over(tmp_path) == {"m.plan", "m.plan.json"}


def test_unwritable_outputs_are_noticed_before_the_build(mlp: Path, tmp_path: Path) -> None:
    def never(step: BuildStep) -> None:
        raise AssertionError("the build had started")

    with pytest.raises(OutputError, match=r"the folder .*/gone does not exist; create it first"):
        build(mlp, tmp_path / "gone/m.plan", on_step=never)
    with pytest.raises(OutputError, match="it is a folder"):
        build(mlp, tmp_path, on_step=never)
    with pytest.raises(OutputError, match=r"cannot write /proc/m\.plan"):
        build(mlp, Path("/proc/m.plan"), on_step=never)


def test_missing_plugin_library(
    quantize_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "gone.so"))
    with pytest.raises(PluginError, match=r"gone\.so \(from \$GRAPHOPT_PLUGIN_LIBRARY\) does not exist"):
        build(quantize_model(), tmp_path / "m.plan")
    assert left_over(tmp_path) == set()


def test_native_fallback_builds_the_bodies_where_the_library_is_missing(
    quantize_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "gone.so"))
    result = build(quantize_model(count=2), tmp_path / "m.plan", BuildOptions(native_fallback=True))
    assert result.manifest.plugin_layers == 0
    assert result.manifest.custom_ops == {"MixQQuantize": 2}
    assert result.manifest.plugins is None
    assert any("every custom op runs as its function body" in w for w in result.warnings)


def test_a_library_named_must_be_there_even_with_native_fallback(
    quantize_model: Callable[..., Path], tmp_path: Path
) -> None:
    options = BuildOptions(plugins=tmp_path / "gone.so", native_fallback=True)
    with pytest.raises(PluginError, match="does not exist"):
        build(quantize_model(), tmp_path / "m.plan", options)


def test_op_that_the_library_does_not_have(
    save_model: Callable[..., Path], plugin_library: Path, tmp_path: Path
) -> None:
    node = helper.make_node(
        "MixQFuture", ["x"], ["y"], name="f", domain="graphopt", plugin_version="1", plugin_namespace="graphopt"
    )
    with pytest.raises(EngineError, match=r"has no plugin for MixQFuture \(1 node, such as 'f'\); build the plugin"):
        build(save_model([node], domains=["graphopt"]), tmp_path / "m.plan", BuildOptions(plugins=plugin_library))


def test_limits_beyond_the_model_come_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"out of bounds access.*; set --max-batch, --max-seq and --max-past"):
        build(FIXTURES / "bert_torchscript17.onnx", tmp_path / "m.plan", BuildOptions(limits=Limits(seq=512)))


def test_what_the_target_cannot_do_is_explained(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"could not build .*mlp\.onnx: .*FP32 GEMM is not supported$"):
        build(mlp, tmp_path / "m.plan", BuildOptions(compute_capabilities=("7.5",)))
    assert left_over(tmp_path) == set()


def test_inputs_that_are_sizes_are_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [2]),
    ]
    model = save_model([helper.make_node("Reshape", ["x", "sizes"], ["y"])], inputs=inputs)
    with pytest.raises(EngineError, match="input 'sizes' gives sizes by its values"):
        build(model, tmp_path / "m.plan")


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="is not an ONNX"):
        build(tmp_path / "text.onnx", tmp_path / "m.plan")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workspace_bytes": 0}, "workspace limit must be positive, not 0 bytes"),
        ({"optimization_level": 6}, "optimization level must be 0 to 5, not 6"),
    ],
)
def test_options_are_checked(options: dict[str, int], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        BuildOptions(**options)


def test_kernels_missing_for_a_target_are_a_warning(
    quantize_model: Callable[..., Path], plugin_library: Path, rtx_flavour: Flavour, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(plugins, "uncovered", lambda library, targets: targets[-1:])
    result = build(quantize_model(), tmp_path / "m.plan", BuildOptions(plugins=plugin_library))
    assert any("no kernels for compute capability 12.0 and later" in w for w in result.warnings)
    assert json.loads(result.manifest_path.read_text())["plugin_layers"] == 1


class FakeCache:
    """ITimingCache as bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class FakeConfig:
    """IBuilderConfig that accepts the timings of one machine, and times one more kernel in every build."""

    def __init__(self) -> None:
        self.cache: FakeCache | None = None

    def create_timing_cache(self, data: bytes) -> FakeCache:
        return FakeCache(data)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data.startswith(b"foreign"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        assert self.cache is not None
        return FakeCache(self.cache.data + b"+1")


TIMING = Flavour("tensorrt", "10.14.1", None, Messages(), None)


@pytest.mark.parametrize(("before", "after"), [(None, b"+1"), (b"known", b"known+1"), (b"foreign", b"+1")])
def test_timing_cache_is_reused_extended_and_kept_when_the_build_fails(
    before: bytes | None, after: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "timings"
    if before is not None:
        path.write_bytes(before)
    warnings: list[str] = []
    with pytest.raises(KeyboardInterrupt), _timing_cache(TIMING, FakeConfig(), path, warnings):
        raise KeyboardInterrupt
    assert path.read_bytes() == after
    assert ["is of another TensorRT or GPU" in w for w in warnings] == [True] * (before == b"foreign")


def test_timing_cache_that_cannot_be_read(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="cannot read timing cache"),
        _timing_cache(TIMING, FakeConfig(), tmp_path, []),
    ):
        pass


def test_importing_the_engine_needs_no_tensorrt(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """
import sys
import graphopt.engine.build, graphopt.engine.doctor, graphopt.engine.inspect, graphopt.cli.build, graphopt.cli.doctor
print([m for m in sys.modules if m.split(".")[0] in ("tensorrt", "tensorrt_rtx", "torch", "onnxruntime", "cuda")])
"""
    done = run_python(code)
    assert done.stdout == "[]\n", done.stderr
