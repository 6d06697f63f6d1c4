"""What the parser refuses becomes one sentence that names the node; missing plugins never pass silently."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.engine import plugins
from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import Messages
from graphopt.engine.parse import count_plugin_layers, missing_plugins, parse
from graphopt.engine.source import CustomOps, count_custom_ops, read
from graphopt.errors import EngineError

SaveModel = Callable[..., Path]
RunPython = Callable[..., subprocess.CompletedProcess[str]]
K = 64


def refusal(flavour: Flavour, path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        parse(flavour, flavour.builder(), path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.rtx
def test_network_of_a_plain_model(rtx_flavour: Flavour, mlp: Path) -> None:
    network, _parser, changes = parse(rtx_flavour, rtx_flavour.builder(), mlp)
    assert not changes
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    assert network.get_layer(network.num_layers - 1).type.name == "ACTIVATION"


@pytest.mark.rtx
def test_unknown_op_of_another_domain(rtx_flavour: Flavour, save_model: SaveModel) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="nd", domain="com.acme")
    message = refusal(rtx_flavour, save_model([node], domains=["com.acme"]))
    assert "model.onnx: TensorRT-RTX" in message
    assert "knows no op or plugin 'Frobnicate' (node 'nd' (Frobnicate))" in message


@pytest.mark.rtx
def test_standard_op_without_importer(rtx_flavour: Flavour, save_model: SaveModel) -> None:
    message = refusal(rtx_flavour, save_model([helper.make_node("Det", ["x"], ["y"], name="nd")]))
    assert "does not support op 'Det' (node 'nd' (Det))" in message


@pytest.mark.rtx
def test_contradicting_types(rtx_flavour: Flavour, save_model: SaveModel) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="nd")
    message = refusal(rtx_flavour, save_model([node], weights={"w": np.ones((K, 3), np.float16)}))
    assert "refused node 'nd' (MatMul): nd: IMatrixMultiplyLayer must have same input types" in message
    assert message.endswith("`B` is of type Half")


@pytest.mark.rtx
def test_op_inside_a_function_body_is_placed(rtx_flavour: Flavour, save_model: SaveModel) -> None:
    body = [helper.make_node("Unique", ["x"], ["y"], name="inner")]
    function = helper.make_function("acme", "Wrapper", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    node = helper.make_node("Wrapper", ["x"], ["y"], name="outer", domain="acme")
    message = refusal(rtx_flavour, save_model([node], functions=[function], domains=["acme"]))
    assert (
        "does not support op 'Unique' (node 'inner' (Unique), inside the function body of outer (Wrapper))" in message
    )


@pytest.mark.rtx
def test_not_onnx_and_empty(rtx_flavour: Flavour, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    assert "cannot read" in refusal(rtx_flavour, path)
    path.write_bytes(b"")
    assert "found no layers in this model" in refusal(rtx_flavour, path)


@pytest.mark.rtx
def test_plugin_without_body_and_library(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    quantize_model: Callable[..., Path],
    rtx_flavour: Flavour,
) -> None:
    code = """
import sys
from pathlib import Path
from graphopt.engine.flavour import select
from graphopt.engine.parse import parse
from graphopt.errors import EngineError
flavour = select("rtx")
try:
    parse(flavour, flavour.builder(), Path(sys.argv[1]))
except EngineError as e:
    print(e)
"""
    done = run_python(code, quantize_model(body=False))
    assert "knows no op or plugin 'MixQQuantize' (node 'quantize_0'" in done.stdout, done.stderr


TRAP = """
import sys
from pathlib import Path
from graphopt.engine.flavour import select
from graphopt.engine.parse import count_plugin_layers, parse
from graphopt.engine.source import read
from graphopt.errors import EngineError
flavour, path = select("rtx"), Path(sys.argv[1])
network, parser, _ = parse(flavour, flavour.builder(), path)
wanted = read(path)[1]
print(count_plugin_layers(flavour, network, wanted, frozenset(wanted.counts)))
try:
    count_plugin_layers(flavour, network, wanted, frozenset())
except EngineError as e:
    print(e)
"""


@pytest.mark.rtx
def test_bodies_imported_in_place_of_plugins_are_noticed(
    run_python: RunPython, quantize_model: Callable[..., Path], rtx_flavour: Flavour
) -> None:
    """The trap: with the library not loaded, the parser inlines the body and reports success."""
    done = run_python(TRAP, quantize_model(count=1, body=True))
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.splitlines()
    assert count == "0"
    assert "only 0 of 1 custom nodes became plugin layers" in message
    assert "imported the bodies of others among MixQQuantize (1 node, such as 'quantize_0')" in message


def quantizing(*ops: str) -> CustomOps:
    nodes = [
        helper.make_node(op, ["x"], ["y"], name=f"{op}_node", domain="graphopt", plugin_namespace="graphopt")
        for op in ops
    ]
    return count_custom_ops(helper.make_model(helper.make_graph(nodes, "g", [], [])))


def test_missing_plugins_are_named_but_not_all_of_them() -> None:
    flavour = Flavour("tensorrt", "10.14.1", None, Messages(), None)
    wanted = quantizing("A", "B", "B", "C", "D", "E")
    library = plugins.PluginLibrary(Path("/opt/lib.so"), "", None, None, ("A", "Other"))
    listed = r"B \(2 nodes, such as 'B_node'\), C \(1 node, such as 'C_node'\), D \(1 node, .*\) and 1 more op; "
    with pytest.raises(EngineError, match=rf"/opt/lib\.so has no plugin for {listed}.* or pass --native-fallback"):
        missing_plugins(flavour, wanted, library, native_fallback=False)
    with pytest.raises(EngineError, match=r"no plugin library is loaded for A \(1 node"):
        missing_plugins(flavour, wanted, None, native_fallback=False)
    assert missing_plugins(flavour, wanted, library, native_fallback=True) == {"B", "C", "D", "E"}
    assert missing_plugins(flavour, quantizing("A"), library, native_fallback=False) == frozenset()


@pytest.mark.rtx
@pytest.mark.parametrize("external", [False, True])
def test_bodies_asked_for_are_expanded_with_unique_names(
    external: bool, rtx_flavour: Flavour, quantize_model: Callable[..., Path]
) -> None:
    path = quantize_model(count=3, external=external)
    wanted = read(path)[1]
    network, _parser, _ = parse(rtx_flavour, rtx_flavour.builder(), path, frozenset({"MixQQuantize"}))
    assert count_plugin_layers(rtx_flavour, network, wanted, frozenset({"MixQQuantize"})) == 0
    types = [network.get_layer(i).type.name for i in range(network.num_layers)]
    assert types.count("QUANTIZE") == 3
    with pytest.raises(EngineError, match="only 0 of 3"):
        count_plugin_layers(rtx_flavour, network, wanted, frozenset())


def test_tensorrt_8_gets_the_model_without_function_bodies(quantize_model: Callable[..., Path]) -> None:
    path = quantize_model()
    assert onnx.load(path).functions
    received: list[onnx.ModelProto] = []

    class Parser:
        def __init__(self, network: object, logger: object) -> None:
            self.num_errors = 0

        def parse(self, data: bytes, path: str) -> bool:
            received.append(onnx.load_from_string(data))
            return True

    flags = SimpleNamespace(EXPLICIT_BATCH=0)
    trt = SimpleNamespace(OnnxParser=Parser, NetworkDefinitionCreationFlag=flags)
    layer = SimpleNamespace(type=SimpleNamespace(name="PLUGIN_V2"))
    network = SimpleNamespace(num_layers=1, get_layer=lambda i: layer)
    flavour = Flavour("tensorrt", "8.6.1", trt, Messages(), None)
    *_, changes = parse(flavour, SimpleNamespace(create_network=lambda flags: network), path)
    opset = onnx.load(path).opset_import[0].version
    assert changes == (
        "TensorRT 8 reads no function bodies: those of MixQQuantize were left out, plugins take their place",
        f"the model was lowered from opset {opset} to 17, the last that TensorRT 8 reads",
    )
    assert not received[0].functions
    assert [n.op_type for n in received[0].graph.node] == ["MixQQuantize"]
    assert received[0].graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_tensorrt_8_errors_name_the_node_by_number(tmp_path: Path, quantize_model: Callable[..., Path]) -> None:
    error = SimpleNamespace(node=lambda: 7, desc=lambda: "No importer registered for op: MixQQuantize")

    class Parser:
        num_errors = 1

        def __init__(self, network: object, logger: object) -> None:
            pass

        def parse(self, data: bytes, path: str) -> bool:
            return False

        def get_error(self, i: int) -> SimpleNamespace:
            return error

    trt = SimpleNamespace(OnnxParser=Parser, NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0))
    flavour = Flavour("tensorrt", "8.6.1", trt, Messages(), None)
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 refused node number 7: No importer registered for op"):
        parse(flavour, SimpleNamespace(create_network=lambda flags: None), quantize_model())
