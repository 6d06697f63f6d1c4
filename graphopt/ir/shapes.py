"""Shape inference on the graph, without weights in memory."""

__all__ = ["infer_shapes"]

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.io import to_proto
from graphopt.ir.model import Model
from graphopt.ir.weights import numpy_dtype


def infer_shapes(model: Model) -> None:
    """Fill in dtypes and shapes that the standard operators imply; what is already known stays.

    Raises:
        ModelError: the graph contradicts itself (a dtype or shape that an operator cannot have).
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(to_proto(model), check_type=True, data_prop=True)
    except onnx.shape_inference.InferenceError as e:
        raise ModelError(f"{model.path or 'the model'} is not a valid ONNX graph: {str(e).splitlines()[0]}") from e
    tensors = model.graph.tensors()
    for info in inferred.graph.value_info:
        tensor = tensors.get(info.name)
        kind = info.type.tensor_type
        if not isinstance(tensor, gs.Variable) or not info.type.HasField("tensor_type"):
            continue
        if tensor.dtype is None and kind.elem_type:
            known = kind.elem_type != onnx.TensorProto.BFLOAT16
            # graphsurgeon keeps types that numpy lacks as the ONNX enum.
            tensor.dtype = numpy_dtype(kind.elem_type) if known else kind.elem_type
        if tensor.shape is None and kind.HasField("shape"):
            tensor.shape = [d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in kind.shape.dim]
