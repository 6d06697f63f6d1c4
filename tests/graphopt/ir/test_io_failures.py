"""Saves that fail: what was there before is still there, and nothing half-written is left."""

import gc
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError, OutputError
from graphopt.ir import weights
from tests.support.arrays import weight

ToModel = Callable[..., ir.Model]


def chain(rng: np.random.Generator, layers: int = 4, width: int = 64) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["n", width])],
            [numpy_helper.from_array(weight(rng, width, width), f"w{i}") for i in range(layers)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def old(rng: np.random.Generator, tmp_path: Path) -> Path:
    """A folder with an older pair of files where the new ones shall go."""
    folder = tmp_path / "out"
    folder.mkdir()
    onnx.save(chain(rng, 2), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return folder


def test_folder_missing(rng: np.random.Generator, to_model: ToModel, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*/no/such does not exist; create it first"):
        ir.save(to_model(chain(rng)), tmp_path / "no" / "such" / "m.onnx")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
def test_target_is_a_folder(rng: np.random.Generator, to_model: ToModel, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=f"{name}: it is a folder"):
        ir.save(to_model(chain(rng)), out / "m.onnx", external_data=True)
    assert [p.name for p in out.iterdir()] == [name]


def test_parent_is_a_file(rng: np.random.Generator, to_model: ToModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="create it first"):
        ir.save(to_model(chain(rng)), tmp_path / "file" / "m.onnx")


def test_not_writable(rng: np.random.Generator, to_model: ToModel, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root writes everywhere, so the refusal of the system is played."""
    before = contents(old)

    def refused(self: Path, mode: str = "r", *args: object, **kwargs: object) -> Iterator[object]:
        if "w" in mode:
            raise PermissionError(13, "Permission denied")
        return real(self, mode, *args, **kwargs)

    model = to_model(chain(rng))
    real = Path.open
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OutputError, match=r"cannot write .*m.onnx.*: Permission denied; nothing was changed"):
        ir.save(model, old / "m.onnx", external_data=True)
    monkeypatch.undo()
    assert contents(old) == before


@pytest.mark.parametrize("room", [0, 100, 5000, 20_000, 50_000])
@pytest.mark.parametrize("external", [True, False])
def test_disk_full(rng: np.random.Generator, to_model: ToModel, old: Path, room: int, external: bool) -> None:
    """A limit on the size of files stands for a full disk: the write fails after ``room`` bytes."""
    model, before = to_model(chain(rng)), contents(old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*: File too large; nothing was changed"):
            ir.save(model, old / "m.onnx", external_data=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(old) == before
    ir.save(model, old / "m.onnx", external_data=external)
    assert len(onnx.load(old / "m.onnx").graph.initializer) == 4


@pytest.mark.parametrize("target", ["m.onnx.data", "m.onnx"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fresh", [True, False])
def test_failure_at_a_rename_undoes_both(
    rng: np.random.Generator,
    to_model: ToModel,
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    error: BaseException,
    fresh: bool,
) -> None:
    model = to_model(chain(rng))
    if fresh:
        for path in list(old.iterdir()):
            path.unlink()
    before, real = contents(old), Path.replace

    def replace(self: Path, other: Path) -> Path:
        if Path(other).name == target and self.name.endswith(".partial"):
            raise error
        return real(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        ir.save(model, old / "m.onnx", external_data=True)
    monkeypatch.undo()
    assert contents(old) == before


def test_interrupt_while_copying(
    rng: np.random.Generator, to_model: ToModel, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before, copied = to_model(chain(rng)), contents(old), []

    def chunks(tensor: onnx.TensorProto) -> Iterator[bytes]:
        if copied:
            raise KeyboardInterrupt
        copied.append(tensor.name)
        yield from real(tensor)

    real = ir.io._chunks
    monkeypatch.setattr("graphopt.ir.io._chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        ir.save(model, old / "m.onnx", external_data=True)
    assert copied == ["w0"]
    assert contents(old) == before


def test_interrupt_signal_in_a_process(rng: np.random.Generator, tmp_path: Path) -> None:
    """Ctrl-C during a real save of a real process, in the middle of the data file."""
    onnx.save(chain(rng), tmp_path / "source.onnx")
    script = f"""
        import os, signal
        from graphopt import ir
        real = ir.io._chunks
        def chunks(tensor):
            for chunk in real(tensor):
                yield chunk[:100]
                os.kill(os.getpid(), signal.SIGINT)
                yield chunk[100:]
        ir.io._chunks = chunks
        ir.save(ir.load({str(tmp_path / "source.onnx")!r}), {str(tmp_path / "out.onnx")!r}, external_data=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["source.onnx"]


def test_source_that_shrinks_while_it_is_copied(
    rng: np.random.Generator, to_model: ToModel, old: Path, tmp_path: Path
) -> None:
    model, before = to_model(chain(rng)), contents(old)
    os.truncate(tmp_path / "model.onnx", 30_000)
    with pytest.raises(ModelError, match=r"model.onnx was changed while tensor 'w\d' was copied"):
        ir.save(model, old / "m.onnx", external_data=True)
    assert contents(old) == before


def test_too_big_for_one_file(
    rng: np.random.Generator, to_model: ToModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = to_model(chain(rng))
    monkeypatch.setattr("graphopt.ir.io._MAX_PROTO_BYTES", 10_000)
    with pytest.raises(OutputError, match="do not fit into a single ONNX file; allow external data"):
        ir.save(model, tmp_path / "big.onnx", external_data=False)
    assert not (tmp_path / "big.onnx").exists()


def test_spool_full(rng: np.random.Generator, tmp_path: Path) -> None:
    store = weights.WeightStore(tmp_path)
    store.put("fits", weight(rng, 30, 30))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot keep weights in .*: File too large; make room there"):
            store.put("does not", weight(rng, 100, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(OutputError, match="cannot keep weights in"):
        weights.WeightStore(tmp_path / "missing").put("w", weight(rng, 100, 100))


def test_spool_is_deleted_with_its_store(rng: np.random.Generator, tmp_path: Path) -> None:
    store = weights.WeightStore(tmp_path)
    constant = store.put("w", weight(rng, 30, 30))
    del store
    assert weights.read(constant).shape == (30, 30), "a constant must keep the spool alive that it lies in"
    assert len(list(tmp_path.iterdir())) == 1
    del constant
    gc.collect()
    assert not list(tmp_path.iterdir())
