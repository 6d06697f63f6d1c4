"""Models for TensorRT 8.6, whose parser reads opset 17 without model-local functions, and which chooses types itself.

Four things change on the way, none of them in the file:

* function bodies go; those of other domains are expanded into their calls first;
* the opset becomes 17 and the IR version 8, where every node can be written in them; the start and end of Shape, which
  TensorRT 8 reads as if they were not there, become a Slice, and constant operands of Range scalars, without which its
  parser ends the process;
* INT8 operands of our ops become INT32, four bytes to an element: TensorRT 8 takes an INT8 tensor for quantized values
  with a scale, and may convert it (see trt_plugins/common/plugin_v2.h). Words of a M-ANT cache, 2 bytes a token where
  heads have 64 channels, are joined in pairs for that;
* our nodes get ``type_id``, their activation type, because TensorRT 8 would try FP32 and FP16 and keep the faster one.
"""

__all__ = ["Prepared", "prepare", "refine"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.defs import SchemaError, get_schema

from graphopt.engine.plugins import NAMESPACE
from graphopt.errors import EngineError
from graphopt.ir.walk import all_nodes

OPSET, IR_VERSION = 17, 8
#: An end of Slice beyond every shape; TensorRT 8 computes shapes in INT32.
_TO_THE_END = 2**31 - 1
#: INT8 values to an INT32 element.
_PACK = 4
#: Ops that take rows of their state, where these are no multiple of _PACK, joined with the next ones.
_JOINED = frozenset({"MANTCachedAttention"})
#: ONNX type of T -> value of ``nvinfer1::DataType``.
_TYPE_IDS: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 1}
#: Their axes are an input from opset 18 on, and were an attribute before.
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
                         "ReduceMin", "ReduceProd", "ReduceSumSquare"})  # fmt: skip
#: Attributes of later opsets whose every value means the same to the types that TensorRT 8 has.
_DROPPED = frozenset({"saturate", "noop_with_empty_axes"})
#: Layers that compute with the values of their inputs; the others only move them.
_COMPUTING = ("ACTIVATION", "ELEMENTWISE", "MATRIX_MULTIPLY", "REDUCE", "SCALE", "SOFTMAX", "UNARY")


@dataclass(frozen=True)
class Prepared:
    """A model that TensorRT 8's parser reads.

    Attributes:
        proto: without its external data.
        float32: tensors of a model with FP16 that are FP32 nevertheless; empty for a model without FP16.
        changes: one sentence each about what the user may want to know of.
    """

    proto: onnx.ModelProto
    float32: frozenset[str]
    changes: tuple[str, ...]


def prepare(proto: onnx.ModelProto) -> Prepared:
    """Rewrite ``proto``, in place as far as possible, into what TensorRT 8 can read.

    Args:
        proto: the model without its external data; functions of our domain are plugins' bodies.

    Raises:
        EngineError: a node needs a later opset, bfloat16, or INT8 rows whose length is no multiple of 4.
    """
    foreign = [(f.domain, f.name) for f in proto.functions if f.domain != NAMESPACE]
    if foreign:
        proto = inliner.inline_selected_functions(proto, foreign)
    types = _types(proto)
    changes = tuple(_changes(proto))
    _lower_opset(proto)
    _slice_shapes(proto.graph)
    _scalar_ranges(proto.graph)
    _pack_int8(proto, types)
    for node in _ours(proto.graph):
        node.attribute.append(helper.make_attribute("type_id", _type_id(node, types)))
    del proto.functions[:]
    del proto.graph.value_info[:]  # it names the INT8 tensors by their former type
    mixed = TensorProto.FLOAT16 in types.values()
    return Prepared(proto, frozenset(n for n, t in types.items() if mixed and t == TensorProto.FLOAT), changes)


def _changes(proto: onnx.ModelProto) -> Iterator[str]:
    if proto.functions:
        ops = ", ".join(sorted({f.name for f in proto.functions}))
        yield f"TensorRT 8 reads no function bodies: those of {ops} were left out, plugins take their place"
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if version > OPSET:
        yield f"the model was lowered from opset {version} to {OPSET}, the last that TensorRT 8 reads"


def refine(trt: Any, network: Any, float32: frozenset[str]) -> None:
    """Keep the layers that compute ``float32`` tensors in FP32, which a network allowed to use FP16 would not.

    Norms overflow and rotary angles lose their fraction in FP16: models that cast around them mean it.
    """
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type.name in _COMPUTING and layer.num_outputs and layer.get_output(0).name in float32:
            layer.precision = trt.DataType.FLOAT
            layer.set_output_type(0, trt.DataType.FLOAT)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """ONNX element types of all tensors of the main graph, through the bodies of our ops."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=False).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for info in (*graph.input, *graph.output, *graph.value_info):
        types.setdefault(info.name, info.type.tensor_type.elem_type)
    return types


def _ours(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.domain == NAMESPACE)


def _type_id(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """The type T of a node of ours: that of its first input, or where that is INT8, of its first output.

    Other operands tell nothing: scales are FP32 or FP16 whatever T is, and so are tables and codebooks.
    """
    given = types.get(node.input[0], TensorProto.UNDEFINED)
    known = types.get(node.output[0], TensorProto.UNDEFINED) if given == TensorProto.INT8 else given
    if known == TensorProto.BFLOAT16:
        raise EngineError(
            f"node '{node.name}' ({node.op_type}) computes in bfloat16, which TensorRT 8 lacks; export in float16"
        )
    if known not in _TYPE_IDS:
        raise EngineError(f"node '{node.name}' ({node.op_type}) has operands of unknown type; optimize the model again")
    return _TYPE_IDS[known]


def _pack_int8(proto: onnx.ModelProto, types: dict[str, int]) -> None:
    graph = proto.graph
    packed: dict[str, onnx.NodeProto] = {}
    for node in _ours(graph):
        for name in (*node.input, *node.output):
            if types.get(name) == TensorProto.INT8:
                packed.setdefault(name, node)
    for node in graph.node:
        if node.domain != NAMESPACE and (shared := packed.keys() & set(node.input)):
            raise EngineError(
                f"INT8 tensor '{min(shared)}' is read by node '{node.name}' ({node.op_type}) too, which TensorRT 8 "
                "would give other bytes; keep INT8 tensors between plugins"
            )
    for tensor in graph.initializer:
        if tensor.name in packed:
            _pack_initializer(tensor, packed[tensor.name])
    for info in (*graph.input, *graph.output):
        if info.name in packed:
            _pack_port(info, packed[info.name])


def _pack_port(info: onnx.ValueInfoProto, node: onnx.NodeProto) -> None:
    """Declare an input or output of the graph as INT32 of the same bytes."""
    kind = info.type.tensor_type
    kind.elem_type = TensorProto.INT32
    if not kind.shape.dim:
        return
    *lead, last = kind.shape.dim
    if not last.HasField("dim_value"):
        last.ClearField("dim_param")
        return
    rows, size = (lead[-1].dim_value if lead else 0), last.dim_value  # 0 rows: a dynamic axis
    if size % _PACK and node.op_type in _JOINED and rows and rows * size % _PACK == 0:
        lead[-1].dim_value, last.dim_value = rows * size // _PACK, 1
    else:
        last.dim_value = _quarter(size, info.name, node)


def _pack_initializer(tensor: onnx.TensorProto, node: onnx.NodeProto) -> None:
    """Declare the same bytes as INT32; external data stays where it is."""
    if tensor.int32_data:  # one INT8 value to an entry
        values = np.ascontiguousarray(numpy_helper.to_array(tensor))
        tensor.ClearField("int32_data")
        tensor.raw_data = values.tobytes()
    tensor.data_type = TensorProto.INT32
    tensor.dims[-1] = _quarter(tensor.dims[-1], tensor.name, node)


def _quarter(size: int, tensor: str, node: onnx.NodeProto) -> int:
    if size % _PACK:
        hint = "; give its cache a fixed capacity (optimize --kv-capacity)" if node.op_type in _JOINED else ""
        raise EngineError(
            f"INT8 tensor '{tensor}' of node '{node.name}' has rows of {size} values; "
            f"TensorRT 8 needs a multiple of {_PACK}{hint}"
        )
    return size // _PACK


def _lower_opset(proto: onnx.ModelProto) -> None:
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    standard = next((o for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    if standard is None or standard.version <= OPSET:
        return
    constants = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in all_nodes(proto.graph.node):
        if node.domain in ("", "ai.onnx"):
            _lower_node(node, standard.version, constants)
    standard.version = OPSET


def _slice_shapes(graph: onnx.GraphProto) -> None:
    """Write Shape(x, start, end) as Slice(Shape(x), start, end), in the main graph."""
    for position, node in reversed(list(enumerate(graph.node))):
        bounds = {a.name: a.i for a in node.attribute}
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx") or not bounds:
            continue
        whole, result = f"{node.output[0]}/whole", node.output[0]
        del node.attribute[:]
        node.output[0] = whole
        operands = [whole]
        for name, value in (("start", bounds.get("start", 0)), ("end", bounds.get("end", _TO_THE_END)), ("axis", 0)):
            operands.append(f"{result}/{name}")
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), operands[-1]))
        graph.node.insert(position + 1, helper.make_node("Slice", operands, [result], name=f"{result}/slice"))


def _scalar_ranges(graph: onnx.GraphProto) -> None:
    """Give Range, in the main graph, scalars where it has constants of one element."""
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "Range" or node.domain not in ("", "ai.onnx"):
            continue
        for i, name in enumerate(node.input):
            if name in constants and list(constants[name].dims) == [1]:
                scalar = numpy_helper.from_array(numpy_helper.to_array(constants[name])[0], f"{name}/scalar")
                if scalar.name not in constants:
                    constants[scalar.name] = scalar
                    graph.initializer.append(scalar)
                node.input[i] = scalar.name


def _lower_node(node: onnx.NodeProto, opset: int, constants: dict[str, onnx.TensorProto]) -> None:
    if get_schema(node.op_type, opset).since_version <= OPSET:
        return
    if node.op_type in _REDUCTIONS and len(node.input) > 1:
        axes = constants.get(node.input[1]) if node.input[1] else None
        if axes is not None:
            node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
        if axes is not None or not node.input[1]:
            del node.input[1:]
    kept = [a for a in node.attribute if a.name not in _DROPPED]
    try:
        old = get_schema(node.op_type, OPSET)
    except SchemaError:
        old = None
    if old is None or len(node.input) > old.max_input or any(a.name not in old.attributes for a in kept):
        raise EngineError(
            f"node '{node.name}' ({node.op_type}) needs an opset later than {OPSET}, the last that TensorRT 8 reads; "
            f"export the model with opset {OPSET}"
        )
    del node.attribute[:]
    node.attribute.extend(kept)
