"""Running models for tests: ONNX Runtime with its optimizations off, so that our rewrite is what is tested."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from graphopt.runners.host import reference_evaluator


def run_ort(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of ``model``.

    bfloat16 goes in and out through OrtValues, since ONNX Runtime's numpy interface has no such type.

    Raises:
        NotImplementedError: the CPU provider has no kernel for one of the nodes and types.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as e:
        if "NOT_IMPLEMENTED" in str(e):
            raise NotImplementedError(str(e).splitlines()[0]) from e
        raise
    values = {name: _to_ort(array) for name, array in feeds.items()}
    return [_from_ort(v) for v in session.run_with_ort_values(None, values)]


def run_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of ``model`` in onnx.reference.

    Raises:
        NotImplementedError: onnx.reference has no implementation of one of the operators at the model's opset.
    """
    try:
        return [np.asarray(v) for v in reference_evaluator()(model).run(None, feeds)]
    except RuntimeError as e:
        if "No implementation" in str(e):
            raise NotImplementedError(str(e)) from e
        raise


def _to_ort(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _from_ort(value: ort.OrtValue) -> np.ndarray:
    if value.element_type() == onnx.TensorProto.BFLOAT16:
        return numpy_helper.to_array(_bfloat16_proto(value))
    return value.numpy()


def _bfloat16_proto(value: ort.OrtValue) -> onnx.TensorProto:
    import ctypes

    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape))) if np.prod(shape) else b""
    return onnx.TensorProto(dims=shape, data_type=onnx.TensorProto.BFLOAT16, raw_data=raw)
