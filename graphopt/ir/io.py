"""Load and save ONNX models of any size.

Loading leaves the weights in the files where they are, external data and long inline tensors alike, and checks every
reference into a file: the file exists, is long enough and lies inside the model's folder. Saving streams tensor by
tensor into one data file; both files get a temporary name first and are renamed when complete, so an interrupted or
failed save leaves what was there before.
"""

__all__ = ["load", "save", "to_proto"]

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.logger import G_LOGGER

from graphopt.errors import ModelError, OutputError
from graphopt.ir import carry, wire
from graphopt.ir.export import opset_imports, to_proto
from graphopt.ir.files import replacing
from graphopt.ir.inline import inline_products
from graphopt.ir.model import MAX_OPSET, MIN_OPSET, Model
from graphopt.ir.upgrade import OLDEST_OPSET, upgrade
from graphopt.ir.weights import (
    ALIGNMENT,
    INLINE_BYTES,
    DiskValues,
    WeightStore,
    external_info,
    proto_nbytes,
    set_external_info,
)

#: A model whose tensors take more than this goes to a separate data file; smaller ones stay one file.
SINGLE_FILE_BYTES = 64 << 20
#: protobuf messages end at 2 GiB; the graph around the weights needs some of it.
_MAX_PROTO_BYTES = (2 << 30) - (16 << 20)
_COPY_CHUNK = 16 << 20
#: The long spelling of the standard domain.
_STANDARD = "ai.onnx"
#: Where the bytes of a tensor lie: (location, offset, length).
_Place = tuple[str, int, int]

# graphsurgeon prints its warnings on standard output, which belongs to results; its critical messages are exceptions.
G_LOGGER.severity = G_LOGGER.CRITICAL


def load(path: str | os.PathLike[str]) -> Model:
    """Read an ONNX file; tensors of more than ``INLINE_BYTES`` stay on disk.

    Initializers that are also graph inputs (defaults that a caller could override) become plain initializers, and calls
    of model-local functions that hold products are written out (`graphopt.ir.inline`).

    Raises:
        ModelError: the file is missing, not ONNX, truncated, of an unsupported opset, or its external data is missing,
            too short or outside the model's folder.
    """
    path = Path(path)
    proto = _parse(path)
    opset = _check_opset(proto, path)
    for tensor in _tensors(proto):
        _check_tensor(tensor, path)
    _check_sparse(proto.graph, path)
    if opset < MIN_OPSET:
        try:
            upgrade(proto)
        except ModelError as e:
            raise ModelError(f"{path}: {e}") from None
    _shorten_domains(proto)
    inline_products(proto)
    functions = list(proto.functions)
    del proto.functions[:]
    try:
        carried = carry.detach(proto.graph)
    except ModelError as e:
        raise ModelError(f"{path}: {e}") from None
    graph = gs.import_onnx(proto)
    carry.attach(graph, carried)
    model = Model(graph=graph, shell=_shell(proto), functions=functions, path=path, store=WeightStore())
    # ONNX Runtime's optimizer uses its own operators without importing their domain.
    graph.import_domains = opset_imports(model)
    for constant in _constants(model):
        constant.data_location = None
        lazy = getattr(constant._values, "tensor", None)
        if isinstance(lazy, onnx.TensorProto) and _is_external(lazy):
            constant._values = DiskValues(lazy)
    return model


def save(model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> list[Path]:
    """Write ``model`` to ``path``, with its tensors in ``<path>.data`` when they are large.

    Args:
        model: the model; it is not changed. It may have been loaded from ``path``.
        path: the .onnx file to write; replaced if it exists.
        external_data: True for a data file, False for a single file (2 GB at most), None to choose by size.

    Returns:
        The files written, the model first.

    Raises:
        OutputError: the folder does not exist or cannot be written, the disk is full, or the model needs a data file.
    """
    path = Path(path)
    proto = to_proto(model)
    total = sum(proto_nbytes(t) for t in _tensors(proto))
    if external_data is None:
        external_data = total > SINGLE_FILE_BYTES
    elif not external_data and total >= _MAX_PROTO_BYTES:
        raise OutputError(
            f"{path}: {total / 2**30:.1f} GB of weights do not fit into a single ONNX file; allow external data"
        )
    before = [_place(t) for t in _tensors(proto)]
    if external_data:
        data_path = path.with_name(path.name + ".data")
        written = [path, data_path]
        with replacing(data_path, path) as (partial_data, partial):
            with partial_data.open("wb") as out:
                _write_data(_tensors(proto), out, data_path.name)
            partial.write_bytes(proto.SerializeToString())
    else:
        written = [path]
        with replacing(path) as (partial,):
            for tensor in _tensors(proto):
                _to_inline(tensor)
            partial.write_bytes(proto.SerializeToString())
    _follow(model, path, before, {str(p.resolve()) for p in written})
    return written


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            inside = next((p.name for p in sorted(path.glob("*.onnx"))), "model.onnx")
            raise ModelError(f"{path} is a folder; give an .onnx file in it, such as {path / inside}")
        if not path.is_file():
            raise ModelError(f"{path} does not exist or is not a file; give the path of an .onnx file")
        proto = wire.read(path)
    except (DecodeError, ValueError) as e:
        raise ModelError(f"{path} is not an ONNX file, or it is truncated ({path.stat().st_size} bytes)") from e
    except OSError as e:
        raise ModelError(f"cannot read {path}: {e.strerror or e}") from e
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph with outputs; was the file truncated?")
    return proto


def _check_opset(proto: onnx.ModelProto, path: Path) -> int:
    """Return the standard opset, which is one that can be read."""
    versions = [o.version for o in proto.opset_import if o.domain in ("", _STANDARD)]
    if not versions:
        raise ModelError(
            f"{path} imports no standard ONNX opset; export it again with opset {MIN_OPSET} to {MAX_OPSET}"
        )
    if not OLDEST_OPSET <= versions[0] <= MAX_OPSET:
        old = versions[0] < OLDEST_OPSET
        hint = "convert it with onnx.version_converter" if old else "install a newer onnx package"
        raise ModelError(f"{path} uses opset {versions[0]}, supported are {OLDEST_OPSET} to {MAX_OPSET}; {hint}")
    return versions[0]


def _shorten_domains(proto: onnx.ModelProto) -> None:
    """Spell the standard domain "" where the file spells it "ai.onnx": runtimes take both, shape inference does not."""
    for holder in (proto, *proto.functions):
        if all(o.domain != _STANDARD for o in holder.opset_import):
            continue
        versions: dict[str, int] = {}
        for imported in holder.opset_import:
            versions.setdefault("" if imported.domain == _STANDARD else imported.domain, imported.version)
        del holder.opset_import[:]
        holder.opset_import.extend(onnx.helper.make_opsetid(*item) for item in versions.items())
    scopes = [g.node for g in carry.graphs(proto.graph)] + [f.node for f in proto.functions]
    for node in itertools.chain.from_iterable(scopes):
        if node.domain == _STANDARD:
            node.domain = ""


def _check_tensor(tensor: onnx.TensorProto, model_path: Path) -> None:
    """Check dtype, shape and size of a tensor, and make the location of its external data absolute."""
    where = f"{model_path}: tensor '{tensor.name}'"
    if tensor.data_type not in onnx.helper.get_all_tensor_dtypes():
        raise ModelError(f"{where} has the unknown data type {tensor.data_type}; install a newer onnx package")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{where} has the impossible shape {list(tensor.dims)}; export the model again")
    if _is_external(tensor):
        _resolve_external(tensor, model_path, where)
    elif tensor.HasField("raw_data"):
        _check_length(len(tensor.raw_data), tensor, where)
    else:
        try:
            onnx.numpy_helper.to_array(tensor)
        except ValueError as e:
            raise ModelError(f"{where} has values that do not fill its shape: {e}; export the model again") from None


def _check_sparse(graph: onnx.GraphProto, model_path: Path) -> None:
    for sub in carry.graphs(graph):
        for sparse in sub.sparse_initializer:
            if _is_external(sparse.values) or _is_external(sparse.indices):
                raise ModelError(
                    f"{model_path}: sparse tensor '{sparse.values.name}' has external data, which no runtime reads; "
                    "export it as a dense tensor"
                )


def _check_length(length: int, tensor: onnx.TensorProto, where: str) -> None:
    expected = proto_nbytes(tensor)
    if length != expected:
        raise ModelError(
            f"{where} has {length} bytes but its shape {list(tensor.dims)} needs {expected}; export the model again"
        )


def _resolve_external(tensor: onnx.TensorProto, model_path: Path, where: str) -> None:
    """Check one reference into a data file and make its location absolute."""
    try:
        location, offset, length = external_info(tensor)
    except ValueError:
        entries = {e.key: e.value for e in tensor.external_data}
        raise ModelError(f"{where} has damaged external data {entries}; export the model again") from None
    target = Path(location) if location == str(model_path.resolve()) else _inside(location, model_path, where)
    _check_length(length, tensor, where)
    size = target.stat().st_size
    if offset < 0 or offset + length > size:
        raise ModelError(f"{where} ends at byte {offset + length} but {target.name} has only {size}; it is truncated")
    set_external_info(tensor, str(target), offset, length)
    if length <= INLINE_BYTES:
        _to_inline(tensor)


def _inside(location: str, model_path: Path, where: str) -> Path:
    """Return the absolute path of a data file, which must lie in the model's folder, symbolic links followed.

    A model that is a symbolic link itself, as in the download caches of model hubs, has two folders: that of the link
    and that of the file.
    """
    target = (model_path.parent / location).resolve() if location and "\0" not in location else None
    folders = (model_path.parent.resolve(), model_path.resolve().parent)
    if target is None or Path(location).is_absolute() or not any(target.is_relative_to(f) for f in folders):
        raise ModelError(
            f"{where} has its data in '{location}', outside the model's folder; move that file beside the model"
        )
    if not target.is_file():
        raise ModelError(f"{where} has its data in {target}, which is missing; copy that file beside the model")
    return target


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _place(tensor: onnx.TensorProto) -> _Place | None:
    """Where the bytes of ``tensor`` lie on disk; None if they are in memory."""
    return external_info(tensor) if _is_external(tensor) else None


def _write_data(tensors: Iterable[onnx.TensorProto], out: BinaryIO, location: str) -> None:
    """Move every tensor of more than ``INLINE_BYTES`` to ``out``; tensors with the same bytes on disk share them."""
    offsets: dict[_Place, int] = {}
    for tensor in tensors:
        length, place = proto_nbytes(tensor), _place(tensor)
        if length <= INLINE_BYTES or tensor.data_type == onnx.TensorProto.STRING:
            _to_inline(tensor)
            continue
        if place is None or place not in offsets:
            offset = -(-out.tell() // ALIGNMENT) * ALIGNMENT
            out.seek(offset)
            for chunk in _chunks(tensor):
                out.write(chunk)
            if place is not None:
                offsets[place] = offset
        else:
            offset = offsets[place]
        set_external_info(tensor, location, offset, length)


def _chunks(tensor: onnx.TensorProto) -> Iterator[bytes]:
    """Yield the bytes of ``tensor`` in pieces of bounded size."""
    if not _is_external(tensor):
        if not tensor.HasField("raw_data"):
            tensor = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
        yield tensor.raw_data
        return
    source, offset, length = external_info(tensor)
    with Path(source).open("rb") as f:
        f.seek(offset)
        for at in range(0, length, _COPY_CHUNK):
            size = min(_COPY_CHUNK, length - at)
            chunk = f.read(size)
            if len(chunk) < size:
                raise ModelError(f"{source} was changed while tensor '{tensor.name}' was copied; run again")
            yield chunk


def _to_inline(tensor: onnx.TensorProto) -> None:
    if _is_external(tensor):
        data = b"".join(_chunks(tensor))
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = data


def _follow(model: Model, path: Path, before: list[_Place | None], written: set[str]) -> None:
    """Where a save has replaced a file in which the model's own tensors lie, let them refer to the new file.

    Args:
        model: what was saved.
        path: the .onnx file that was written.
        before: where the tensors lay, in the order of `_tensors`.
        written: absolute paths of the files that were written.
    """
    if not any(place and place[0] in written for place in before):
        return
    saved = _parse(path)
    for tensor in _tensors(saved):
        _check_tensor(tensor, path)
    moved = {old: new for old, tensor in zip(before, _tensors(saved), strict=True) if old and (new := _place(tensor))}
    on_disk = [c._values.tensor for c in _constants(model) if isinstance(c._values, DiskValues)]
    on_disk += [t for f in model.functions for t in _node_tensors(f.node) if _is_external(t)]
    for tensor in on_disk:
        if external_info(tensor)[0] in written:
            set_external_info(tensor, *moved[external_info(tensor)])


def _constants(model: Model) -> Iterator[gs.Constant]:
    """Yield the constants of the model: initializers and attributes, in subgraphs too; some more than once."""
    for graph in model.all_graphs():
        yield from (t for t in graph.tensors().values() if isinstance(t, gs.Constant))
        yield from (a for n in graph.nodes for a in n.attrs.values() if isinstance(a, gs.Constant))


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor of the model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)


def _shell(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy what graphsurgeon does not carry."""
    shell = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name in ("graph", "functions", "opset_import"):
            continue
        if isinstance(value, str | bytes | int):
            setattr(shell, descriptor.name, value)
        else:
            getattr(shell, descriptor.name).extend(value)
    shell.graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    shell.graph.metadata_props.extend(proto.graph.metadata_props)
    return shell
