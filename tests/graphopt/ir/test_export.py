"""What the exporter refuses and fills in; what it preserves is in test_io.py."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.errors import InternalError
from graphopt.ir import Model
from graphopt.ir.export import to_proto


def one_node(**attrs: object) -> Model:
    x, y = gs.Variable("x", np.float32, ["n", np.int64(4), None, -1, ""]), gs.Variable("y", np.float32)
    return Model(gs.Graph([gs.Node("Odd", "odd", attrs, [x], [y], domain="test")], [x], [y], opset=17, name="g"))


def test_imports_and_ir_version_are_filled_in() -> None:
    model = one_node()
    model.functions.append(onnx.helper.make_function("mine", "F", [], [], [], []))
    proto = to_proto(model)
    assert {o.domain: o.version for o in proto.opset_import} == {"": 17, "test": 1, "mine": 1}
    assert proto.ir_version == 8
    assert model.graph.import_domains is None, "exporting must not change the model"


def test_ir_version_of_the_source_is_kept_unless_functions_need_more() -> None:
    model = one_node()
    model.shell.ir_version = 7
    assert to_proto(model).ir_version == 7
    model.functions.append(onnx.helper.make_function("mine", "F", [], [], [], []))
    assert to_proto(model).ir_version == 8
    model.shell.ir_version = 10
    assert to_proto(model).ir_version == 10


def test_standard_domain_is_not_imported_twice() -> None:
    model = one_node()
    model.graph.nodes[0].domain = "ai.onnx"
    assert [o.domain for o in to_proto(model).opset_import] == [""]


def test_dimensions() -> None:
    dims = to_proto(one_node()).graph.input[0].type.tensor_type.shape.dim
    assert [d.WhichOneof("value") for d in dims] == ["dim_param", "dim_value", None, None, None]


def test_attributes_as_passes_write_them() -> None:
    proto = to_proto(
        one_node(empty=[], to=np.float16, kind=np.dtype(np.int64), scale=np.float32(0.5), axis=np.int64(-1))
    )
    attributes = {a.name: a for a in proto.graph.node[0].attribute}
    assert attributes["empty"].type == onnx.AttributeProto.INTS
    assert (attributes["to"].i, attributes["kind"].i) == (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64)
    assert (attributes["scale"].f, attributes["axis"].i) == (0.5, -1)


def test_two_tensors_of_one_name() -> None:
    model = one_node()
    model.graph.nodes[0].inputs.append(gs.Constant("w", np.arange(3.0)))
    model.graph.nodes[0].inputs.append(gs.Constant("w", np.arange(4.0)))
    with pytest.raises(InternalError, match="two tensors of graph 'g' are called 'w'"):
        to_proto(model)


def test_constant_renamed_by_a_pass() -> None:
    model = one_node()
    constant = model.store.put("w", np.arange(1000.0))
    model.graph.nodes[0].inputs.append(constant)
    constant.name = "renamed"
    proto = to_proto(model)
    assert proto.graph.initializer[0].name == proto.graph.node[0].input[1] == "renamed"
