"""IR text: deterministic, complete enough to diff, weights by dtype and shape."""

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from graphopt.ir import text
from tests.support.arrays import weight
from tests.support.rewrite import parse

SOURCE = """
<ir_version: 8, opset_import: ["test": 3, "": 18]>
g (float[n, 4] x, bool c) => (float[n, 4] y, float z)
<float[4] w = {1.5, -2, 0.1, 3e20}> {
    a, _, b = test.Split3 <ratio = 0.25, axes = [1, 2], mode = "fast"> (x, "", w)
    y = If(c) <
        then_branch = t () => (float[n, 4] p) { p = Abs(a) },
        else_branch = e () => (float[n, 4] q) { q = Neg(a) }
    >
    z = test.Reduce(b)
}
"""

EXPECTED = """\
opset onnx 18, test 3
graph(%x: f32[nx4], %c: bool[]) -> (%y: f32[nx4], %z: f32[])
  %a, %_, %b = test.Split3(%x, _, f32[4]{1.5, -2, 0.1, 3e+20}) axes=[1, 2] mode='fast' ratio=0.25
  %y = If(%c)
    else_branch:
    graph() -> (%q: f32[nx4])
      %q = Neg(%a)
    then_branch:
    graph() -> (%p: f32[nx4])
      %p = Abs(%a)
  %z = test.Reduce(%b)
"""


def test_everything_on_one_page() -> None:
    assert text.dump(parse(SOURCE)) == EXPECTED


def test_the_same_model_gives_the_same_text() -> None:
    assert len({text.dump(parse(SOURCE)) for _ in range(3)}) == 1


def test_constants_by_dtype(rng: np.random.Generator) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    node = model.graph.nodes[0]
    for name, array in {
        "big": weight(rng, 50, 60),
        "half": weight(rng, 20, 100, dtype=ml_dtypes.bfloat16),
        "packed": np.arange(-8, 8).astype(ml_dtypes.int4),
        "text": np.array(["a", "b"], object),
        "flags": np.array([True, False]),
        "nothing": np.zeros((0, 3), np.int64),
        "scalar": np.array(7, np.int32),
    }.items():
        node.inputs.append(model.store.put(name, array))
    line = text.dump(model).splitlines()[2]
    assert line == (
        "  %y = Relu(%x, @big: f32[50x60], @half: bf16[20x100], @packed: int4[16], string[2]{a, b}, "
        "bool[2]{True, False}, int64[0x3]{}, int32[]{7})"
    )
    assert not any(isinstance(t._values, np.ndarray) for t in node.inputs[1:3]), "dumping must not read weights"


def test_functions_are_listed() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.functions.append(helper.make_function("mine", "F", ["a", "b"], ["c"], [], []))
    assert text.dump(model).splitlines()[-1] == "function mine.F(a, b) -> (c)"


def test_unknown_dtype_and_rank() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.inputs.append(gs.Variable("free"))
    assert "%free: ?[?]" in text.dump(model)
