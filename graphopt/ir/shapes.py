"""Shape inference on the graph, without weights in memory."""

__all__ = ["infer_shapes"]

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.io import to_proto
from graphopt.ir.model import Model
from graphopt.ir.weights import numpy_dtype

_MICROSOFT = "com.microsoft"
#: Operators of ONNX Runtime, unknown to onnx's inference, that keep the type and shape of their first input.
_ALIKE = {
    "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip
#: Outputs of theirs that do: the result, and the sum that a skip adds up to.
_ALIKE_OUTPUTS = (0, 3)


def infer_shapes(model: Model) -> None:
    """Fill in dtypes and shapes that the operators imply, ONNX Runtime's too; what is already known stays.

    Raises:
        ModelError: the graph contradicts itself (a dtype or shape that an operator cannot have).
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_known_to_onnx(model), check_type=True, data_prop=True)
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


def _known_to_onnx(model: Model) -> onnx.ModelProto:
    """Return the model with operators that onnx does not know as ones of the same types and shapes."""
    proto = to_proto(model)
    nodes = [stand_in for node in proto.graph.node for stand_in in _stand_ins(node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _stand_ins(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.domain == _MICROSOFT and node.op_type == "EmbedLayerNormalization":
        words, table = node.input[0], node.input[2]
        return [onnx.helper.make_node("Gather", [table, words], [node.output[0]])]
    if node.op_type in _ALIKE and (node.domain == _MICROSOFT or node.op_type == "SimplifiedLayerNormalization"):
        outputs = [node.output[i] for i in _ALIKE_OUTPUTS if i < len(node.output) and node.output[i]]
        return [onnx.helper.make_node("Identity", [node.input[0]], [output]) for output in outputs]
    return [node]
