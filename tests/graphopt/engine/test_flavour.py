"""Choosing a TensorRT, and the differences that the rest need not know of."""

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.engine import flavour as flavours
from graphopt.engine import gpu
from graphopt.engine.flavour import Flavour, Installed, installed, select
from graphopt.engine.messages import Messages
from graphopt.errors import EngineError

H100 = gpu.Driver("13.0", (gpu.Gpu("H100", "9.0", 80 << 30),), None)
NO_GPU = gpu.Driver(None, (), "no NVIDIA driver is installed")


class Flag8(enum.IntEnum):
    EXPLICIT_BATCH = 0


class Flag10(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class Flag11(enum.IntEnum):
    STRONGLY_TYPED = 0


def fake(version: str, flag: type[enum.IntEnum], **members: Any) -> Flavour:
    layers = {"PLUGIN_V2": "v2"} if version.startswith("8") else {"PLUGIN_V2": "v2", "PLUGIN_V3": "v3"}
    trt = SimpleNamespace(NetworkDefinitionCreationFlag=flag, LayerType=SimpleNamespace(**layers), **members)
    return Flavour("tensorrt", version, trt, Messages(), object())


@pytest.mark.parametrize(
    ("version", "flag", "bits", "layer", "library"),
    [
        ("8.6.1", Flag8, 0b01, "v2", "libnvinfer.so.8"),
        ("10.14.1.48", Flag10, 0b10, "v3", "libnvinfer.so.10"),
        ("11.4.0", Flag11, 0b01, "v3", "libnvinfer.so.11"),
    ],
)
def test_networks_follow_the_types_of_the_model_in_every_version(
    version: str, flag: type[enum.IntEnum], bits: int, layer: str, library: str
) -> None:
    made = fake(version, flag)
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert made.network(builder) == bits
    assert made.plugin_layer == layer
    assert made.library_name == library
    assert made.has_timing_cache
    assert str(made) == f"TensorRT {version}"


def test_tensorrt_8_is_told_the_types_that_the_network_has() -> None:
    class DataType(enum.Enum):
        FLOAT, HALF, INT8 = range(3)

    flags = SimpleNamespace(FP16="fp16", PREFER_PRECISION_CONSTRAINTS="prefer")
    set_flags: list[str] = []
    sources: list[int] = []
    config = SimpleNamespace(set_flag=set_flags.append, set_tactic_sources=sources.append)
    layer = SimpleNamespace(num_outputs=1, get_output=lambda i: SimpleNamespace(dtype=DataType.HALF))
    network = SimpleNamespace(num_layers=1, get_layer=lambda i: layer, num_inputs=0)
    fake("8.6.1", Flag8, DataType=DataType, BuilderFlag=flags).follow_types(config, network)
    assert (set_flags, sources) == (["fp16", "prefer"], [0])
    fake("10.14.1", Flag10).follow_types(config, network)
    assert (set_flags, sources) == (["fp16", "prefer"], [0])


@pytest.mark.parametrize("failure", [TypeError("factory function returned nullptr"), None])
def test_a_builder_that_does_not_start_is_explained(failure: Exception | None) -> None:
    def start(logger: object) -> None:
        if failure:
            raise failure

    with pytest.raises(EngineError, match=r"TensorRT 10\.14\.1 cannot start its builder.*no GPU.*--flavour rtx"):
        fake("10.14.1", Flag10, Builder=start).builder()


def test_only_rtx_builds_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "query", lambda: H100)
    made = fake("10.14.1", Flag10)
    assert made.set_targets(None, ()) == ("9.0",)
    with pytest.raises(EngineError, match="builds for the GPU of this machine; drop --compute-capability"):
        made.set_targets(None, ("8.9",))


@pytest.mark.rtx
def test_rtx_targets_are_set_and_checked(rtx_flavour: Flavour) -> None:
    config = rtx_flavour.builder().create_builder_config()
    assert rtx_flavour.set_targets(config, ()) == ("8.0", "8.6", "8.9", "12.0 and later")
    assert config.num_compute_capabilities == 0
    assert rtx_flavour.set_targets(config, ("8.6", "12.0")) == ("8.6", "12.0")
    assert [config.get_compute_capability(i).name for i in range(2)] == ["SM86", "SM120"]
    with pytest.raises(EngineError, match=r"cannot build for compute capability '9\.0'; (did you mean|known)"):
        rtx_flavour.set_targets(config, ("8.6", "9.0"))


@pytest.mark.parametrize(("name", "hint"), [("rtxx", "did you mean 'rtx'"), ("onnx", "known: rtx, tensorrt")])
def test_unknown_flavours_are_refused(name: str, hint: str) -> None:
    with pytest.raises(EngineError, match=f"unknown TensorRT flavour '{name}'; {hint}"):
        select(name)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the tests put what Python finds as TensorRT's modules."""
    names = {"rtx": "fake_tensorrt_rtx", "tensorrt": "fake_tensorrt"}
    monkeypatch.setattr(flavours, "_MODULES", names)
    monkeypatch.syspath_prepend(tmp_path)
    flavours.installed.cache_clear()
    flavours._import.cache_clear()
    yield tmp_path
    flavours.installed.cache_clear()
    flavours._import.cache_clear()


WORKING = "__version__ = '10.14.1'\nclass ILogger:\n    pass\n"


def test_without_any_tensorrt_the_error_says_what_to_install(modules: Path) -> None:
    assert installed() == ()
    with pytest.raises(EngineError, match="no TensorRT is installed; get one with: pip install tensorrt-rtx"):
        select()
    with pytest.raises(EngineError, match="package fake_tensorrt is not installed; get it with: pip install tensorrt"):
        select("tensorrt")


def test_a_broken_module_is_reported_not_skipped(modules: Path) -> None:
    (modules / "fake_tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    (entry,) = installed()
    assert (entry.name, entry.version) == ("tensorrt", None)
    assert "does not load: libnvinfer.so.10: cannot open shared object file; reinstall" in str(entry.problem)
    with pytest.raises(EngineError, match=r"does not load: libnvinfer\.so\.10"):
        select()


@pytest.mark.parametrize(
    ("usable", "driver", "expected"),
    [
        (("rtx", "tensorrt"), NO_GPU, "rtx"),
        (("rtx", "tensorrt"), H100, "tensorrt"),
        (("rtx",), H100, "rtx"),
        (("tensorrt",), NO_GPU, "tensorrt"),
    ],
)
def test_the_flavour_follows_from_the_machine(
    usable: tuple[str, ...], driver: gpu.Driver, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "installed", lambda: tuple(Installed(n, "1", None) for n in usable))
    monkeypatch.setattr(flavours, "_import", lambda name: name)
    monkeypatch.setattr(gpu, "query", lambda: driver)
    assert select() == expected


def test_a_working_module_is_imported_once_with_a_logger_that_records(modules: Path) -> None:
    (modules / "fake_tensorrt.py").write_text(WORKING)
    made = select()
    assert (made.name, made.version, made.major) == ("tensorrt", "10.14.1", 10)
    assert select("tensorrt") is made
    with made.messages.record() as record:
        made.logger.log(SimpleNamespace(name="ERROR"), "said")
    assert record.errors == ["said"]
