"""Files that cannot be used: each is refused with one sentence that names the culprit."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.ir.model import MAX_OPSET, MIN_OPSET
from graphopt.ir.upgrade import OLDEST_OPSET
from tests.support.arrays import weight


def linear(rng: np.random.Generator, opset: int | None = 18) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(weight(rng, 64, 32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset or 18)], ir_version=8)
    if opset is None:
        del model.opset_import[:]
    return model


def external(rng: np.random.Generator, folder: Path, **entries: str) -> Path:
    """Write a model with its weight in ``folder/w.bin`` and the given entries changed; None removes an entry."""
    model, path = linear(rng), folder / "m.onnx"
    (folder / "w.bin").write_bytes(model.graph.initializer[0].raw_data)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": "0", "length": "8192"} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path | str) -> str:
    """Return the message with which ``path`` is refused; it is one line."""
    with pytest.raises(ModelError) as e:
        ir.load(path)
    message = str(e.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist or is not a file" in refusal(tmp_path / "no.onnx")


def test_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith(f"is a folder; give an .onnx file in it, such as {tmp_path}/model.onnx")
    (tmp_path / "decoder.onnx").touch()
    assert refusal(tmp_path).endswith(f"such as {tmp_path}/decoder.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\x03\x04" + bytes(64), bytes(4096), b"\xff" * 4096],
    ids=["empty", "text", "png", "zip", "zeros", "ones"],
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "ONNX" in refusal(path)


def test_random_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "m.onnx"
    for _ in range(200):
        path.write_bytes(rng.bytes(int(rng.integers(1, 400))))
        assert "ONNX" in refusal(path)


def test_truncated_anywhere(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = linear(rng).SerializeToString()
    path = tmp_path / "m.onnx"
    for size in {*range(0, len(whole), 97), *range(len(whole) - 80, len(whole))}:
        path.write_bytes(whole[:size])
        assert "truncated" in (message := refusal(path)) or "opset" in message, size


def test_damaged_anywhere_is_refused_or_loaded_but_never_crashes(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = linear(rng)
    del whole.graph.initializer[0].dims[:]
    whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight(rng, 4, 4), "w"))
    good = whole.SerializeToString()
    path, refused = tmp_path / "m.onnx", 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ int(rng.integers(1, 256))]) + good[at + 1 :])
        try:
            ir.load(path)
        except ModelError:
            refused += 1
    assert refused > len(good) // 4


def test_graph_without_outputs(tmp_path: Path, rng: np.random.Generator) -> None:
    model = linear(rng)
    del model.graph.output[:]
    onnx.save(model, tmp_path / "m.onnx")
    assert "no graph with outputs" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("opset", "part"),
    [
        (OLDEST_OPSET - 1, "convert it with onnx.version_converter"),
        (1, "convert it"),
        (MAX_OPSET + 1, "install a newer onnx package"),
        (999, "install a newer onnx package"),
        (None, "imports no standard ONNX opset"),
    ],
)
def test_opset(tmp_path: Path, rng: np.random.Generator, opset: int | None, part: str) -> None:
    (tmp_path / "m.onnx").write_bytes(linear(rng, opset).SerializeToString())
    message = refusal(tmp_path / "m.onnx")
    assert part in message
    assert f"{MIN_OPSET if opset is None else OLDEST_OPSET} to {MAX_OPSET}" in message


@pytest.mark.parametrize("opset", [MIN_OPSET, MAX_OPSET])
def test_oldest_and_newest_opsets_load(tmp_path: Path, rng: np.random.Generator, opset: int) -> None:
    (tmp_path / "m.onnx").write_bytes(linear(rng, opset).SerializeToString())
    assert ir.load(tmp_path / "m.onnx").opset == opset


def test_external_data_missing(tmp_path: Path, rng: np.random.Generator) -> None:
    path = external(rng, tmp_path)
    (tmp_path / "w.bin").unlink()
    message = refusal(path)
    assert "tensor 'w'" in message
    assert f"{tmp_path / 'w.bin'}, which is missing" in message


def test_external_data_short(tmp_path: Path, rng: np.random.Generator) -> None:
    path = external(rng, tmp_path)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:-1])
    assert "ends at byte 8192 but w.bin has only 8191" in refusal(path)
    (tmp_path / "w.bin").write_bytes(b"")
    assert "w.bin has only 0" in refusal(path)


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"length": "8000"}, r"has 8000 bytes but its shape [64, 32] needs 8192"),
        ({"length": "9000"}, r"has 9000 bytes but its shape [64, 32] needs 8192"),
        ({"offset": "1"}, "ends at byte 8193"),
        ({"offset": "-1"}, "ends at byte 8191"),
        ({"offset": "99999999999999999999"}, "truncated"),
        ({"offset": "one"}, "damaged external data"),
        ({"length": "-8192"}, "has -8192 bytes"),
        ({"length": ""}, "damaged external data"),
        ({"location": None}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": "."}, "which is missing"),
        ({"location": "w\0.bin"}, "outside the model's folder"),
    ],
)
def test_external_data_entries(tmp_path: Path, rng: np.random.Generator, entries: dict[str, str], part: str) -> None:
    message = refusal(external(rng, tmp_path, **entries))
    assert part in message
    assert "tensor 'w'" in message


def test_external_data_without_offset_and_length_loads(tmp_path: Path, rng: np.random.Generator) -> None:
    path = external(rng, tmp_path, offset=None, length=None)
    constant = ir.load(path).graph.nodes[0].inputs[1]
    assert ir.weights.read(constant).tobytes() == (tmp_path / "w.bin").read_bytes()


def escape_up(folder: Path, outside: Path) -> str:
    return f"../{outside.parent.name}/{outside.name}"


def escape_down_and_up(folder: Path, outside: Path) -> str:
    return f"sub/../../{outside.parent.name}/{outside.name}"


def escape_absolute(folder: Path, outside: Path) -> str:
    return str(outside)


def escape_by_link(folder: Path, outside: Path) -> str:
    (folder / "link.bin").symlink_to(outside)
    return "link.bin"


def escape_by_linked_folder(folder: Path, outside: Path) -> str:
    (folder / "linked").symlink_to(outside.parent, target_is_directory=True)
    return f"linked/{outside.name}"


@pytest.mark.parametrize(
    "escape", [escape_up, escape_down_and_up, escape_absolute, escape_by_link, escape_by_linked_folder]
)
def test_external_data_that_leaves_the_folder(
    tmp_path: Path, rng: np.random.Generator, escape: Callable[[Path, Path], str]
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secrets"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    external(rng, outside)
    location = escape(folder, outside / "w.bin")
    message = refusal(external(rng, folder, location=location))
    assert f"has its data in '{location}', outside the model's folder" in message


def test_external_data_in_a_subfolder_and_behind_links_of_a_download_cache(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    (snapshot / "onnx").mkdir(parents=True)
    model = external(rng, blobs, location="weights/w.bin")
    (snapshot / "weights").mkdir()
    model.rename(blobs / "0a1b")
    (blobs / "w.bin").rename(blobs / "2c3d")
    (snapshot / "m.onnx").symlink_to(blobs / "0a1b")
    (snapshot / "weights" / "w.bin").symlink_to(blobs / "2c3d")
    constant = ir.load(snapshot / "m.onnx").graph.nodes[0].inputs[1]
    assert ir.weights.read(constant).tobytes() == (blobs / "2c3d").read_bytes()


def test_inline_tensor_of_the_wrong_size(tmp_path: Path, rng: np.random.Generator) -> None:
    for array in (weight(rng, 64, 32), weight(rng, 3, 5)):
        model = linear(rng)
        tensor = numpy_helper.from_array(array, "w")
        tensor.raw_data = tensor.raw_data[:-4]
        model.graph.initializer[0].CopyFrom(tensor)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        message = refusal(tmp_path / "m.onnx")
        assert f"tensor 'w' has {array.nbytes - 4} bytes but its shape {list(array.shape)}" in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.ClearField("raw_data"), "values that do not fill its shape"),
        (lambda t: t.dims.__setitem__(0, -64), "impossible shape [-64, 32]"),
        (lambda t: setattr(t, "data_type", 99), "unknown data type 99"),
        (lambda t: setattr(t, "data_type", 0), "unknown data type 0"),
    ],
)
def test_impossible_tensors(
    tmp_path: Path, rng: np.random.Generator, change: Callable[[TensorProto], None], part: str
) -> None:
    model = linear(rng)
    change(model.graph.initializer[0])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert part in refusal(tmp_path / "m.onnx")


def test_sparse_external_data(tmp_path: Path, rng: np.random.Generator) -> None:
    model = linear(rng)
    values = numpy_helper.from_array(weight(rng, 2), "v")
    values.data_location = TensorProto.EXTERNAL
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert "sparse tensor 'v' has external data" in refusal(tmp_path / "m.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear(rng), path)
    path.chmod(0)
    assert "cannot read" in refusal(path)


def test_read_error_names_the_file(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(linear(rng), tmp_path / "m.onnx")

    def broken(path: Path) -> onnx.ModelProto:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("graphopt.ir.wire.read", broken)
    assert "Input/output error" in refusal(tmp_path / "m.onnx")
