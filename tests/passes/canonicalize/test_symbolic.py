"""Shape arithmetic as Python values."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.shapes import infer_shapes
from graphopt.passes.canonicalize.symbolic import dimension, integers, product
from tests.support.rewrite import parse
from tests.support.runtime import run_ort

CONSTANTS = (
    "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 minus = {-1}, int64[1] z = {0}, int64[1] o = {1}, "
    "int64[1] t = {2}, int64[1] m = {-1}, int64[2] both = {0, 2}, int64[1] far = {9223372036854775807}"
)


def entries(nodes: str, x: str = "float[B, 3, S] x"):
    model = parse(f"agraph ({x}) => (int64[N] y) <{CONSTANTS}> {{ {nodes} }}")
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    return integers(model.graph.outputs[0])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Shape(x)", ["B", 3, "S"]),
        ("y = Shape<start=1>(x)", [3, "S"]),
        ("y = Shape<start=-1>(x)", ["S"]),
        ("s = Shape(x) y = Gather(s, both)", ["B", "S"]),
        ("s = Shape(x) y = Slice(s, m, far)", ["S"]),
        ("s = Shape(x) y = Slice(s, z, t, z, o)", ["B", 3]),
        ("s = Shape(x) g = Gather(s, one) u = Unsqueeze(g, z) y = Concat<axis=0>(u, m)", [3, -1]),
        ("s = Shape(x) g = Gather(s, z) q = Squeeze(g) u = Unsqueeze(q, z) y = Concat<axis=0>(u, t)", ["B", 2]),
        ("s = Shape(x) c = Cast<to=7>(s) y = Identity(c)", ["B", 3, "S"]),
        ("s = Shape(x) y = Mul(s, two)", [("mul", "B", 2), 6, ("mul", "S", 2)]),
        ("s = Shape(x) y = Mul(s, one)", ["B", 3, "S"]),
        ("s = Shape(x) y = Add(two, s)", [("add", "B", 2), 5, ("add", "S", 2)]),
        ("s = Shape(x) y = Add(s, zero)", ["B", 3, "S"]),
        ("s = Shape(x) y = Add(s, minus)", [None, 2, None]),
        ("s = Shape(x) y = Sub(s, one)", [None, 2, None]),
        ("s = Shape(x) y = Div(s, two)", [None, 1, None]),
        # torch's expand: -1 stands for "keep", and no dimension is -1.
        ("s = Shape(x) n = Shape(s) k = ConstantOfShape<value=int64[1] {1}>(n) f = Mul(k, minus) e = Equal(s, f) "
         "y = Where(e, k, s)", ["B", 3, "S"]),
        ("s = Concat<axis=0>(m, t) n = Shape(s) k = ConstantOfShape<value=int64[1] {1}>(n) f = Mul(k, minus) "
         "e = Equal(s, f) y = Where(e, k, s)", [1, 2]),
        ("f = Cast<to=1>(x) y = Cast<to=7>(f)", None),
        ("n = NonZero(x) y = Shape(n)", [3, ("n", 1)]),
    ],
)  # fmt: skip
def test_integers(nodes: str, expected: list | None) -> None:
    found = entries(nodes)
    if expected and isinstance(expected[-1], tuple) and expected[-1][0] == "n":
        # The number of nonzeros: shape inference may have given it a name.
        assert found is not None and found[0] == 3 and found[1] is not None
    else:
        assert found == expected


def test_dimensions_without_names_are_their_tensors() -> None:
    model = parse("agraph (float[B, 3] x) => (float[B, 3] y) { y = Neg(x) }")
    x = model.graph.inputs[0]
    assert (dimension(x, 0), dimension(x, -1), dimension(x, 2)) == ("B", 3, None)
    x.shape = [None, 3]
    assert dimension(x, 0) == ("x", 0)
    x.shape = None
    assert dimension(x, 0) is None


def test_sums_that_torch_writes_into_names() -> None:
    model = parse("agraph (float[B, 3] x) => (float[B, 3] y) { y = Neg(x) }")
    x = model.graph.inputs[0]
    x.shape = ["past + sequence", "sequence + past"]
    assert dimension(x, 0) == dimension(x, 1) == ("add", "past", "sequence")
    x.shape = ["past + 1", 3]
    assert dimension(x, 0) == ("add", "past", 1)


@given(a=st.integers(0, 9), b=st.integers(-9, 9))
def test_product(a: int, b: int) -> None:
    assert product(a, b) == a * b
    assert product("n", b) == (None if b < 0 else "n" if b == 1 else ("mul", "n", b))
    assert product("n", None) is None


STEPS = (
    "v{i} = Mul(v{p}, two)",
    "v{i} = Add(v{p}, one)",
    "v{i} = Concat<axis=0>(v{p}, t)",
    "v{i} = Div(v{p}, two)",
    "v{i} = Slice(v{p}, z, t)",
    "v{i} = Gather(v{p}, z)",
    "v{i} = Identity(v{p})",
)


@given(shape=st.lists(st.integers(1, 7), min_size=3, max_size=3), steps=st.lists(st.sampled_from(STEPS), max_size=6))
def test_numbers_equal_what_onnx_runtime_computes(shape: list[int], steps: list[str]) -> None:
    """Random chains of shape arithmetic on a static shape."""
    chain = [step.format(i=i + 1, p=i) for i, step in enumerate(steps)]
    nodes = " ".join(["v0 = Shape(x)", *chain, f"y = Identity(v{len(chain)})"])
    x = f"float[{', '.join(map(str, shape))}] x"
    source = f"agraph ({x}) => (int64[N] y) <{CONSTANTS}> {{ {nodes} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{source}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (expected,) = run_ort(proto, {"x": np.zeros(shape, np.float32)})
    assert entries(nodes, x) == expected.tolist()
