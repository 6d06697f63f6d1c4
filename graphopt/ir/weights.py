"""Weights that stay on disk: lazy reading through memory maps, and a spool for the tensors that passes make.

A big tensor is a `gs.Constant` whose values are a `DiskValues`: a TensorProto with external data whose ``location`` is
an absolute path. Loading, copying and saving a model touch only the proto; `read` maps the bytes when a pass wants
them.
"""

__all__ = [
    "ALIGNMENT",
    "INLINE_BYTES",
    "DiskValues",
    "WeightStore",
    "bits",
    "detached",
    "external_info",
    "nbytes",
    "numpy_dtype",
    "onnx_dtype",
    "proto_nbytes",
    "read",
    "set_external_info",
]

import functools
import math
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import InternalError, OutputError

#: Tensors up to this many bytes are kept in memory: shapes, scales of a layer, scalars.
INLINE_BYTES = 1024
#: Offsets in data files are multiples of this, so that maps of any dtype are aligned and pages are not shared.
ALIGNMENT = 4096


@functools.cache
def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Return the numpy dtype in which `read` delivers a tensor of ONNX type ``data_type``."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def onnx_dtype(dtype: Any) -> int:
    """Return the ONNX type of a numpy (or ml_dtypes) dtype; an ONNX type passes through."""
    return dtype if isinstance(dtype, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@functools.cache
def bits(data_type: int) -> int:
    """Return the bits that one element of ONNX type ``data_type`` takes in a file; 4-bit values lie two to a byte."""
    if data_type == onnx.TensorProto.STRING:
        return 8
    # Eight elements make whole bytes for every width.
    eight: bytes = numpy_helper.from_array(np.zeros(8, numpy_dtype(data_type))).raw_data
    return len(eight)


def proto_nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the values of ``tensor`` take in a data file."""
    count: int = math.prod(tensor.dims)
    return -(-count * bits(tensor.data_type) // 8)


def external_info(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return ``(location, offset, length)`` of a tensor with external data; a missing length is computed."""
    entries = {e.key: e.value for e in tensor.external_data}
    return entries.get("location", ""), int(entries.get("offset", 0)), int(entries.get("length", proto_nbytes(tensor)))


def set_external_info(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Point ``tensor`` at ``length`` bytes at ``offset`` of ``location`` and drop inline values."""
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


class DiskValues(LazyValues):  # type: ignore[misc]
    """Values of a constant that lie in a file; ``tensor`` is a TensorProto with an absolute ``location``.

    ``owner`` keeps the store alive whose spool holds the bytes; None if they lie in a file of the user.
    """

    def __init__(self, tensor: onnx.TensorProto, owner: "WeightStore | None" = None) -> None:
        super().__init__(tensor)
        self.owner = owner

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskValues, (self.tensor,)

    def load(self) -> np.ndarray:
        """Return the values as a read-only memory map (sub-byte types: unpacked into memory)."""
        location, offset, length = external_info(self.tensor)
        flat = np.memmap(location, np.uint8, "r", offset, (length,)) if length else np.empty(0, np.uint8)
        dtype = numpy_dtype(self.tensor.data_type)
        if bits(self.tensor.data_type) < 8:
            packed = onnx.TensorProto(dims=self.tensor.dims, data_type=self.tensor.data_type, raw_data=flat.tobytes())
            return numpy_helper.to_array(packed)
        return flat.view(dtype).reshape(tuple(self.tensor.dims))


def read(constant: gs.Constant) -> np.ndarray:
    """Return the values of ``constant`` without attaching them to the graph.

    Do not keep the result: a memory map that goes out of scope gives its pages back, which is what bounds the memory
    of an `optimize` run. (``Constant.values`` would attach them for good.)
    """
    if not isinstance(constant, gs.Constant):
        raise InternalError(f"weights.read was given {type(constant).__name__} '{constant.name}', not a constant")
    values = constant._values
    if isinstance(values, SparseValues):
        return _dense(values.tensor)
    if isinstance(values, DiskValues):
        return values.load()
    return numpy_helper.to_array(values.tensor) if isinstance(values, LazyValues) else values


def detached(constant: gs.Constant) -> Any:
    """Return what pickles of the values of ``constant``, for a `gs.Constant` in another process.

    What is on disk stays there, as long as ``constant`` lives.
    """
    values = constant._values
    return DiskValues(values.tensor) if isinstance(values, DiskValues) else np.asarray(read(constant))


def nbytes(constant: gs.Constant) -> int:
    """Bytes that the values of ``constant`` take in a file."""
    values = constant._values
    if isinstance(values, SparseValues):
        return proto_nbytes(values.tensor.values) + proto_nbytes(values.tensor.indices)
    if isinstance(values, LazyValues):
        return proto_nbytes(values.tensor)
    return -(-int(values.size) * bits(onnx_dtype(values.dtype)) // 8)


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Return a sparse tensor as an array; its indices are [nnz] linear ones or [nnz, rank] coordinates."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    dense = np.zeros(shape, values.dtype)
    dense.reshape(-1)[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)] = values
    return dense


class WeightStore:
    """A spool file for tensors made by builders and passes; deleted with the store and the last of its constants.

    Args:
        folder: where to put the spool (default: the system's folder for temporary files, ``$TMPDIR``).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._parent = folder
        self._file: Any = None
        self._path: Path | None = None

    def _append(self, data: memoryview) -> tuple[str, int]:
        """Append ``data`` at an aligned offset; return ``(absolute path, offset)``."""
        try:
            if self._file is None:
                spool = Path(tempfile.mkdtemp(prefix="graphopt-", dir=self._parent))
                self._finalizer = weakref.finalize(self, shutil.rmtree, spool, ignore_errors=True)
                self._path = spool / "weights"
                self._file = self._path.open("wb")
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data)
            self._file.flush()
        except OSError as e:
            folder = self._parent or tempfile.gettempdir()
            hint = "make room there" if self._parent else "set TMPDIR to a folder with more room"
            raise OutputError(f"cannot keep weights in {folder}: {e.strerror or e}; {hint}") from e
        return str(self._path), offset

    def put(self, name: str, array: np.ndarray) -> gs.Constant:
        """Write ``array`` to the spool and return a constant ``name`` that refers to it (small arrays stay inline).

        Raises:
            OutputError: the spool's disk is full or not writable.
        """
        data_type = onnx_dtype(array.dtype)
        if array.nbytes <= INLINE_BYTES or data_type == onnx.TensorProto.STRING:
            return gs.Constant(name, np.array(array))
        if bits(data_type) < 8:
            data = memoryview(numpy_helper.from_array(array).raw_data)
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        location, offset = self._append(data)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=data_type)
        set_external_info(tensor, location, offset, data.nbytes)
        return gs.Constant(name, DiskValues(tensor, owner=self))
