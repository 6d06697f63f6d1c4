"""The run and bench verbs, with a runner that needs no GPU."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from graphopt.cli.main import app
from graphopt.engine import run as runs
from graphopt.engine.measure import read_slower
from graphopt.engine.npz import read_npz, write_npz
from graphopt.engine.ports import Port
from graphopt.engine.run import LayerTime, Memory

invoke = CliRunner().invoke
PORTS = (Port("x", np.dtype(np.float32), is_input=True),)


class FakeRunner:
    """Doubles its input; a plan called slow.plan takes twice as long."""

    inputs = PORTS

    def __init__(self, plan: Path, plugin_library: Path | None = None) -> None:
        self._slow = plan.stem == "slow"
        self._ms = 2.0 if self._slow else 1.0
        self.captured = False

    def __enter__(self) -> "FakeRunner":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def shapes(self, given: Mapping[str, tuple[int, ...]] | None, profile: int) -> dict[str, tuple[int, ...]]:
        return dict(given or {"x": (1, 64 * (profile + 1))})

    def infer(self, feeds: Mapping[str, np.ndarray], *, cuda_graph: bool) -> dict[str, np.ndarray]:
        return {"y": 2 * feeds["x"]}

    def fill(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None: ...

    def capture(self) -> None:
        self._ms /= 2

    def milliseconds(self) -> float:
        return self._ms

    def memory(self) -> Memory:
        return Memory(100, 20, 3, 4)

    def layer_times(self) -> list[LayerTime]:
        if self._slow:
            return [LayerTime("l", "MatrixMultiply", 500.0), LayerTime("s", "Softmax", 200.0)]
        return [LayerTime("l", "MixQLinear", 700.0), LayerTime("s", "Softmax", 300.0)]


@pytest.fixture(autouse=True)
def fake_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "Runner", FakeRunner)


def output(*arguments: Any) -> Any:
    done = invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_run_reads_and_writes_npz(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3)).astype(np.float32)
    write_npz(tmp_path / "in.npz", {"x": x})
    shown = output("run", "m.plan", "--data", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert shown["outputs"][0]["shape"] == [2, 3]
    assert np.array_equal(read_npz(tmp_path / "out.npz")["y"], 2 * x)


def test_run_makes_seeded_inputs_of_the_shapes_asked_for(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output("run", "m.plan", "--random", "--seed", seed, "--shapes", "x:2x64", "-o", tmp_path / f"{name}.npz")
    a, b, c = (read_npz(tmp_path / f"{name}.npz")["y"] for name in "abc")
    assert a.shape == (2, 64)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_run_takes_the_usual_shapes_of_a_profile() -> None:
    assert output("run", "m.plan", "--random", "--profile", "1")["outputs"][0]["shape"] == [1, 128]


@pytest.mark.parametrize("flags", [[], ["--random", "--data", "x.npz"]])
def test_run_wants_data_or_random(flags: list[str]) -> None:
    done = invoke(app, ["run", "m.plan", *flags])
    assert done.exit_code == 2
    assert "give either --data FILE or --random" in done.output


def test_bench_compares_with_the_baseline() -> None:
    shown = output("bench", "engine", "fast.plan", "--baseline", "slow.plan")
    assert (shown["plan"]["latency"]["median_us"], shown["baseline"]["latency"]["median_us"]) == (1000.0, 2000.0)
    assert (shown["plan"]["cuda_graph"]["p99_us"], shown["baseline"]["cuda_graph"]["min_us"]) == (500.0, 1000.0)
    assert [(o["op"], o["share"]) for o in shown["plan"]["ops"]] == [("MixQLinear", 0.7), ("Softmax", 0.3)]
    done = invoke(app, ["bench", "engine", "fast.plan", "--baseline", "slow.plan"])
    assert "2.00 times as fast as the baseline" in done.output
    assert "'l' takes 700.0 us, 1.40 times the 500.0 us of the baseline" in done.output


def test_bench_without_a_cuda_graph() -> None:
    shown = output("bench", "engine", "fast.plan", "--baseline", "slow.plan", "--no-cuda-graph")
    assert shown["plan"]["cuda_graph"] is None
    table = invoke(app, ["bench", "engine", "fast.plan", "--baseline", "slow.plan"]).output
    assert "median, CUDA graph" in table and "99 %" in table
    plain = invoke(app, ["bench", "engine", "fast.plan", "--no-cuda-graph"]).output
    assert "CUDA graph" not in plain and "1,000.0 us" in plain


def test_bench_saves_what_was_slower_for_optimize(tmp_path: Path) -> None:
    done = invoke(app, ["bench", "engine", "fast.plan", "--baseline", "slow.plan", "--json"])
    (tmp_path / "bench.json").write_text(done.stdout)
    sentence = "'l' takes 700.0 us, 1.40 times the 500.0 us of the baseline"
    assert read_slower(tmp_path / "bench.json") == {"l": f"bench.json: {sentence}"}
    assert output("bench", "engine", "fast.plan")["slower"] == []
