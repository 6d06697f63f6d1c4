"""Running a plan, as far as it goes without a GPU: profiles by shape, values of inputs, files, calls of CUDA."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.engine import run as runs
from graphopt.engine.device import Device
from graphopt.engine.measure import by_op, latency
from graphopt.engine.npz import read_npz, write_npz
from graphopt.engine.ports import Port, converted, random_input
from graphopt.engine.profiles import Profile, Range
from graphopt.engine.run import LayerTime
from graphopt.errors import EngineError, OutputError

PLAN = Path("m.plan")
PREFILL = Profile("prefill", {"x": Range((1, 1), (1, 256), (4, 512))})
DECODE = Profile("decode", {"x": Range((1, 1), (2, 1), (8, 1))})


@pytest.mark.parametrize(
    ("shape", "index"), [((1, 200), 0), ((1, 1), 1), ((8, 1), 1), ((4, 512), 0), ((1, 2), 0)]
)  # fmt: skip
def test_the_profile_with_the_nearest_usual_shapes_is_chosen(shape: tuple[int, ...], index: int) -> None:
    assert runs._profile_for((PREFILL, DECODE), {"x": shape}, PLAN) == index


def test_shapes_outside_every_profile_are_refused_with_their_range() -> None:
    with pytest.raises(EngineError, match=r"no profile of m\.plan takes.*'x' takes 1x1 to 4x512, not 9x1"):
        runs._profile_for((PREFILL, DECODE), {"x": (9, 1)}, PLAN)


def test_a_plan_of_static_shapes_has_one_profile() -> None:
    assert runs._profile_for((), {"x": (9, 1)}, PLAN) == 0


def test_random_inputs_are_seeded_and_have_outliers() -> None:
    shape = (2, 64, 256)
    first, again, other = (random_input("x", shape, np.dtype(np.float16), {}, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    channels = np.abs(first.astype(np.float32)).mean(0)
    assert channels[::64].min() > 5 * np.median(channels)


def test_random_positions_follow_the_cache_and_masks_are_ones() -> None:
    shapes = {"position_ids": (2, 3), "past_key_values.0.key": (2, 4, 7, 8), "attention_mask": (2, 10)}
    positions = random_input("position_ids", (2, 3), np.dtype(np.int32), shapes, 0)
    assert positions.tolist() == [[7, 8, 9]] * 2
    assert random_input("attention_mask", (2, 10), np.dtype(np.int64), shapes, 0).all()


def test_integers_may_be_wider_than_the_plans_only_if_they_fit() -> None:
    port = Port("ids", np.dtype(np.int32), is_input=True)
    assert converted(np.array([5, -7]), port).dtype == np.int32
    with pytest.raises(EngineError, match="input 'ids' has type int64, the plan wants int32"):
        converted(np.array([2**40]), port)
    with pytest.raises(EngineError, match="input 'ids' has type float32"):
        converted(np.array([1.0], np.float32), port)


def test_npz_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"file": rng.standard_normal((2, 3)).astype(np.float16), "present.0.key": np.zeros((1, 0, 4), np.int8)}
    write_npz(tmp_path / "o.npz", {**arrays, "b": np.array([1.5], ml_dtypes.bfloat16)})
    back = read_npz(tmp_path / "o.npz")
    assert back.keys() == {"file", "present.0.key", "b"}
    assert all(np.array_equal(back[k], v) and back[k].dtype == v.dtype for k, v in arrays.items())
    assert back["b"].dtype == np.float32


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04damaged", b"\x93NUMPY"])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "in.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot read .*in\.npz"):
        read_npz(path)


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_npz(tmp_path / "no" / "o.npz", {})


def test_latency_is_the_percentiles_of_its_samples() -> None:
    times = iter([9.0] * 5 + [0.001 * i for i in range(1, 101)])
    measured = latency(SimpleNamespace(milliseconds=lambda: next(times)), 100)  # type: ignore[arg-type]
    assert (measured.min_us, measured.samples) == (1.0, 100)
    assert measured.median_us == pytest.approx(50.5)
    assert measured.p90_us == pytest.approx(90.1)


def test_layers_are_summed_by_op_slowest_first() -> None:
    ops = by_op([LayerTime("a", "Softmax", 1.0), LayerTime("b", "MixQLinear", 2.0), LayerTime("c", "MixQLinear", 5.0)])
    assert [(o.op, o.layers, o.us, o.share) for o in ops] == [("MixQLinear", 2, 7.0, 0.875), ("Softmax", 1, 1.0, 0.125)]


class FakeRuntime:
    """Stands for cuda.bindings.runtime: every call succeeds, is written down, and returns a number."""

    cudaStreamNonBlocking = 1  # noqa: N815 (CUDA's name)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, int] = {}
        self.cudaError_t = SimpleNamespace(cudaErrorMemoryAllocation=2)
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToDevice="d2d", cudaMemcpyDeviceToHost="d2h"
        )

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name == "cudaGetErrorString":
                return 0, b"an illegal address"
            if name == "cudaMemGetInfo":
                return 0, 100 << 20, 200 << 20
            return self.failing.get(name, 0), 4096

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr("importlib.import_module", lambda name: fake)
    return fake


def test_uploads_fill_the_whole_buffer(cuda: FakeRuntime) -> None:
    with Device() as device:
        device.upload(device.allocate(40), np.arange(4, dtype=np.int32))
    copies = [(c[1], c[3], c[4]) for c in cuda.calls if c[0] == "cudaMemcpyAsync"]
    assert copies == [(4096, 16, "h2d"), (4112, 16, "d2d"), (4128, 8, "d2d")]
    assert ("cudaFree", 4096) in cuda.calls


def test_gpu_memory_that_is_short_is_explained(cuda: FakeRuntime) -> None:
    cuda.failing["cudaMalloc"] = 2
    with Device() as device, pytest.raises(EngineError, match="out of GPU memory: 300 MiB are needed, 100 of 200 MiB"):
        device.allocate(300 << 20)


def test_cuda_errors_name_the_call(cuda: FakeRuntime) -> None:
    cuda.failing["cudaStreamSynchronize"] = 700
    with Device() as device, pytest.raises(EngineError, match=r"cudaStreamSynchronize failed \(an illegal address\)"):
        device.synchronize()


def test_cuda_python_missing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(EngineError, match="pip install cuda-python"):
        Device()


def test_random_starts_leave_a_cache_full_after_the_call() -> None:
    shapes = {"input_ids": (2, 5), "past_key_values.0.key": (2, 4, 64, 8), "start": (2,)}
    assert random_input("start", (2,), np.dtype(np.int32), shapes, 0).tolist() == [59, 59]
