"""Weights that stay on disk: lazy reading through memory maps, and a spool for the tensors that passes make.

A big tensor is a `gs.Constant` whose values are a `DiskValues`: a TensorProto with external data whose ``location`` is
an absolute path. Loading, copying and saving a model touch only the proto; `read` maps the bytes when a pass wants them.
"""

__all__ = ["DiskValues", "WeightStore", "nbytes", "numpy_dtype", "onnx_dtype", "read"]

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import InternalError

#: Tensors up to this many bytes are kept in memory: shapes, scales of a layer, scalars.
INLINE_BYTES = 1024
#: Offsets in data files are multiples of this, so that maps of any dtype are aligned and pages are not shared.
ALIGNMENT = 4096

_NUMPY: dict[int, Any] = {
    onnx.TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    onnx.TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    onnx.TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    onnx.TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
}
#: Two values to a byte; onnx unpacks them.
_SUB_BYTE = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, getattr(onnx.TensorProto, "FLOAT4E2M1", -1)}


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Return the numpy dtype in which `read` delivers a tensor of ONNX type ``data_type``."""
    return np.dtype(_NUMPY.get(data_type) or onnx.helper.tensor_dtype_to_np_dtype(data_type))


def onnx_dtype(dtype: Any) -> int:
    """Return the ONNX type of a numpy (or ml_dtypes) dtype; an ONNX type passes through."""
    if isinstance(dtype, int):
        return dtype
    for data_type, known in _NUMPY.items():
        if np.dtype(dtype) == np.dtype(known):
            return data_type
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def proto_nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the values of ``tensor`` take in a data file."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in _SUB_BYTE:
        return (count + 1) // 2
    return count * numpy_dtype(tensor.data_type).itemsize


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
    """Values of a constant that lie in a file; ``tensor`` is a TensorProto with an absolute ``location``."""

    def load(self) -> np.ndarray:
        """Return the values as a read-only memory map (sub-byte types: unpacked into memory)."""
        location, offset, length = external_info(self.tensor)
        if self.tensor.data_type in _SUB_BYTE:
            inline = onnx.TensorProto(dims=self.tensor.dims, data_type=self.tensor.data_type)
            with Path(location).open("rb") as f:
                f.seek(offset)
                inline.raw_data = f.read(length)
            return numpy_helper.to_array(inline)
        shape = tuple(self.tensor.dims)
        if length == 0:
            return np.empty(shape, numpy_dtype(self.tensor.data_type))
        flat = np.memmap(location, np.uint8, "r", offset, (length,))
        return flat.view(numpy_dtype(self.tensor.data_type)).reshape(shape)


def read(constant: gs.Constant) -> np.ndarray:
    """Return the values of ``constant`` without attaching them to the graph.

    Do not keep the result: a memory map that goes out of scope gives its pages back, which is what bounds the memory
    of an `optimize` run. (``Constant.values`` would attach them for good.)
    """
    if not isinstance(constant, gs.Constant):
        raise InternalError(f"weights.read was given {type(constant).__name__} '{constant.name}', not a constant")
    values = constant._values
    return values.load() if isinstance(values, LazyValues) else values


def nbytes(constant: gs.Constant) -> int:
    """Bytes that the values of ``constant`` take in a file."""
    values = constant._values
    return proto_nbytes(values.tensor) if isinstance(values, LazyValues) else int(values.nbytes)


class WeightStore:
    """A spool file for tensors made by builders and passes, deleted with the store.

    Args:
        folder: where to put the spool (default: the system's folder for temporary files, ``$TMPDIR``).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._parent = folder
        self._file: Any = None
        self._path: Path | None = None

    def _append(self, data: memoryview | bytes) -> tuple[str, int]:
        """Append ``data`` at an aligned offset; return ``(absolute path, offset)``."""
        if self._file is None:
            spool = Path(tempfile.mkdtemp(prefix="graphopt-", dir=self._parent))
            self._path = spool / "weights"
            self._file = self._path.open("wb")
            self._finalizer = weakref.finalize(self, shutil.rmtree, spool, ignore_errors=True)
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        self._file.write(data)
        self._file.flush()
        return str(self._path), offset

    def put(self, name: str, array: np.ndarray) -> gs.Constant:
        """Write ``array`` to the spool and return a constant ``name`` that refers to it (small arrays stay inline)."""
        if array.nbytes <= INLINE_BYTES:
            return gs.Constant(name, np.array(array))
        location, offset = self._append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=onnx_dtype(array.dtype))
        set_external_info(tensor, location, offset, array.nbytes)
        return gs.Constant(name, DiskValues(tensor))

    def adopt(self, tensor: onnx.TensorProto) -> None:
        """Move the inline raw data of ``tensor`` to the spool."""
        location, offset = self._append(tensor.raw_data)
        set_external_info(tensor, location, offset, len(tensor.raw_data))
