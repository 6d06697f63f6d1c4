"""Load and save ONNX models of any size.

Loading reads the protobuf without its external data and checks every reference into a data file: the file exists, is
long enough and lies inside the model's folder. Saving streams tensor by tensor into one data file; both files get a
temporary name first and are renamed when complete, so an interrupted or failed save leaves what was there before.
"""

__all__ = ["load", "save"]

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from graphopt.errors import InternalError, ModelError, OutputError
from graphopt.ir.model import MAX_OPSET, MIN_OPSET, Model
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
_COPY_CHUNK = 16 << 20
#: Inline tensors from this size on leave memory for the spool as soon as they are parsed.
_SPOOL_BYTES = 1 << 20
_DROPPED_ATTRIBUTES = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.TYPE_PROTO}


def load(path: str | os.PathLike[str]) -> Model:
    """Read an ONNX file; tensors in external data stay on disk.

    Raises:
        ModelError: the file is missing, not ONNX, truncated, of an unsupported opset, or its external data is missing,
            too short or outside the model's folder.
    """
    path = Path(path)
    proto = _parse(path)
    _check_opset(proto, path)
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _resolve_external(tensor, path)
    for node in _nodes(proto.graph):
        for attribute in node.attribute:
            if attribute.type in _DROPPED_ATTRIBUTES:
                kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
                raise ModelError(
                    f"{path}: node '{node.name}' ({node.op_type}) has attribute '{attribute.name}' of type {kind}, "
                    "which cannot be carried through a rewrite; remove or replace that node first"
                )
    store = WeightStore()
    for tensor in _tensors(proto):
        if len(tensor.raw_data) >= _SPOOL_BYTES:
            store.adopt(tensor)
    functions = list(proto.functions)
    del proto.functions[:]
    graph = gs.import_onnx(proto)
    _attach_metadata(graph, proto.graph)
    _make_lazy(graph)
    return Model(graph=graph, shell=_shell(proto), functions=functions, path=path, store=store)


def save(model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> list[Path]:
    """Write ``model`` to ``path``, with its tensors in ``<path>.data`` when they are large.

    Args:
        model: the model; it is not changed.
        path: the .onnx file to write; replaced atomically if it exists.
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
    elif not external_data and total >= 2**31 - (1 << 20):
        raise OutputError(
            f"{path}: {total / 2**30:.1f} GB of weights do not fit into a single ONNX file; allow external data"
        )
    data_path = path.with_name(path.name + ".data")
    partial = {p: p.with_name(f".{p.name}.{os.getpid()}.partial") for p in (path, data_path)}
    try:
        if external_data:
            with partial[data_path].open("wb") as f:
                for tensor in _tensors(proto):
                    _to_data_file(tensor, f, data_path.name)
        else:
            for tensor in _tensors(proto):
                _to_inline(tensor)
        with partial[path].open("wb") as f:
            f.write(proto.SerializeToString())
        if external_data:
            partial[data_path].replace(data_path)
        partial[path].replace(path)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}; nothing was written") from e
    finally:
        for p in partial.values():
            p.unlink(missing_ok=True)
    return [path, data_path] if external_data else [path]


def to_proto(model: Model) -> onnx.ModelProto:
    """Return ``model`` as a ModelProto; tensors on disk are external references with absolute locations."""
    graph = gs.export_onnx(model.graph, do_type_check=True)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.shell)
    # graphsurgeon hands out the very protos held by the lazy constants; merging copies them, so they are ours to rewrite.
    proto.graph.MergeFrom(graph.graph)
    del proto.opset_import[:]
    proto.opset_import.extend(graph.opset_import)
    for function in model.functions:
        if function.domain not in {o.domain for o in proto.opset_import}:
            proto.opset_import.add(domain=function.domain, version=1)
    proto.functions.extend(model.functions)
    if not proto.ir_version:
        # 8 is the newest that TensorRT 8.6 reads and the oldest that has model-local functions.
        proto.ir_version = model.graph.ir_version or 8
    proto.ir_version = max(proto.ir_version, 8 if proto.functions else proto.ir_version)
    _restore_metadata(model.graph, proto.graph)
    return proto


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file; give the path of an .onnx file")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as e:
        raise ModelError(f"{path} is not an ONNX file, or it is truncated ({path.stat().st_size} bytes)") from e
    except OSError as e:
        raise ModelError(f"cannot read {path}: {e.strerror or e}") from e
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph with outputs; was the file truncated?")
    return proto


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(
            f"{path} imports no standard ONNX opset; export it again with opset {MIN_OPSET} to {MAX_OPSET}"
        )
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        hint = "convert it with onnx.version_converter" if versions[0] < MIN_OPSET else "install a newer onnx package"
        raise ModelError(f"{path} uses opset {versions[0]}, supported are {MIN_OPSET} to {MAX_OPSET}; {hint}")


def _resolve_external(tensor: onnx.TensorProto, model_path: Path) -> None:
    """Check one reference into a data file and make its location absolute."""
    location, offset, length = external_info(tensor)
    where = f"{model_path}: external data of tensor '{tensor.name}'"
    folder = model_path.resolve().parent
    target = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise ModelError(f"{where} points to '{location}', outside the model's folder; move the file beside the model")
    if not target.is_file():
        raise ModelError(f"{where} is missing: no file {target}; copy it beside the model")
    expected, size = proto_nbytes(tensor), target.stat().st_size
    if length != expected:
        raise ModelError(
            f"{where} has {length} bytes but its shape {list(tensor.dims)} needs {expected}; export the model again"
        )
    if offset < 0 or offset + length > size:
        raise ModelError(
            f"{where} ends at byte {offset + length} but {target.name} has only {size}; the file is truncated"
        )
    set_external_info(tensor, str(target), offset, length)


def _to_data_file(tensor: onnx.TensorProto, out: BinaryIO, location: str) -> None:
    length = proto_nbytes(tensor)
    if length <= INLINE_BYTES or tensor.data_type == onnx.TensorProto.STRING:
        _to_inline(tensor)
        return
    offset = -(-out.tell() // ALIGNMENT) * ALIGNMENT
    out.seek(offset)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        source, start, _ = external_info(tensor)
        with Path(source).open("rb") as f:
            f.seek(start)
            _copy(f, out, length, tensor.name)
    else:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
        out.write(tensor.raw_data)
    set_external_info(tensor, location, offset, length)


def _to_inline(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    source, start, length = external_info(tensor)
    with Path(source).open("rb") as f:
        f.seek(start)
        data = f.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = data


def _copy(source: BinaryIO, out: BinaryIO, length: int, name: str) -> None:
    left = length
    while left:
        chunk = source.read(min(left, _COPY_CHUNK))
        if not chunk:
            raise InternalError(f"data of tensor '{name}' ended {left} bytes early while it was copied")
        out.write(chunk)
        left -= len(chunk)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for sub in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from _nodes(sub)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sub in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from _graph_tensors(sub)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor of the model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _shell(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy what graphsurgeon does not carry."""
    shell = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name in ("graph", "functions", "opset_import"):
            continue
        if isinstance(value, str | bytes | int):
            setattr(shell, field.name, value)
        else:
            getattr(shell, field.name).extend(value)
    shell.graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    shell.graph.metadata_props.extend(proto.graph.metadata_props)
    return shell


def _make_lazy(graph: gs.Graph) -> None:
    """Give constants with external data values that know how to map it."""
    for g in (graph, *graph.subgraphs(recursive=True)):
        tensors = [t for t in g.tensors().values() if isinstance(t, gs.Constant)]
        tensors += [a for n in g.nodes for a in n.attrs.values() if isinstance(a, gs.Constant)]
        for tensor in tensors:
            proto = getattr(tensor._values, "tensor", None)
            if isinstance(proto, onnx.TensorProto) and proto.data_location == onnx.TensorProto.EXTERNAL:
                tensor._values = DiskValues(proto)
            tensor.data_location = None


def _attach_metadata(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    """Remember per-node metadata (exporters keep the source module there) as ``node.metadata``."""
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        node.metadata = {p.key: p.value for p in node_proto.metadata_props}
        for attribute in node_proto.attribute:
            if isinstance(sub := node.attrs.get(attribute.name), gs.Graph):
                _attach_metadata(sub, attribute.g)


def _restore_metadata(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        for key, value in getattr(node, "metadata", {}).items():
            node_proto.metadata_props.add(key=key, value=value)
        for attribute in node_proto.attribute:
            if isinstance(sub := node.attrs.get(attribute.name), gs.Graph):
                _restore_metadata(sub, attribute.g)
