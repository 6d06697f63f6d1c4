"""Exporters' graphs with something changed at random: what canonicalization makes of them still computes the same.

A factor, an operator, an axis or a shape that is not what a pattern wants must stop the pattern; a copy in between must
not. Changes that ONNX Runtime refuses, or that give NaN, do not count.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.errors import InternalError, ModelError
from graphopt.passes import SCHEMES
from tests.passes.canonicalize.test_exporters import CASES, feeds, original
from tests.support.runtime import run_ort

NAMES = sorted(name for name, case in CASES.items() if case.dtype == "float32")
#: Operators that take one another's place.
ALIKE = (
    ("Add", "Sub", "Mul", "Div"),
    ("Sqrt", "Exp", "Abs", "Erf", "Tanh", "Sigmoid", "Cos", "Sin"),
    ("ReduceMean", "ReduceSum", "ReduceMax"),
    ("And", "Or"),
    ("LessOrEqual", "Less", "Greater"),
)
#: Constants up to this many elements are changed.
SMALL = 64
#: ||a - b|| / ||b|| of an output: a few hundred half ulps, where a wrong match is off by far more.
TOLERANCE = 2e-4
#: Graphs that a test compares, and how many it may try for that.
COMPARED, ATTEMPTS = 4, 60

Change = Callable[[random.Random, onnx.GraphProto], bool]


def another_operator(rnd: random.Random, graph: onnx.GraphProto) -> bool:
    node = rnd.choice(graph.node)
    group = next((g for g in ALIKE if node.op_type in g), ())
    if group:
        node.op_type = rnd.choice([op for op in group if op != node.op_type])
    return bool(group)


def another_attribute(rnd: random.Random, graph: onnx.GraphProto) -> bool:
    attributes = [a for node in graph.node for a in node.attribute]
    if not attributes:
        return False
    attribute = rnd.choice(attributes)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rnd.choice([attribute.i + 1, attribute.i - 1, 0, 1, -1])
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rnd.choice([attribute.f * 2, 0.0, 1.0])
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[:] = rnd.sample(list(attribute.ints), len(attribute.ints))
    else:
        return False
    return True


def another_constant(rnd: random.Random, graph: onnx.GraphProto) -> bool:
    inner = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    tensor = rnd.choice([t for t in (*graph.initializer, *inner) if 0 < np.prod(t.dims, dtype=np.int64) <= SMALL])
    values = numpy_helper.to_array(tensor).copy()
    flat, at = values.reshape(-1), rnd.randrange(values.size)
    if abs(float(flat[at])) > 2**31:
        return False
    flat[at] = not flat[at] if values.dtype == bool else rnd.choice([flat[at] * 2, flat[at] + 1, 0, 1])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return True


def a_copy_between(rnd: random.Random, graph: onnx.GraphProto) -> bool:
    at, slot = rnd.choice([(i, s) for i, node in enumerate(graph.node) for s, name in enumerate(node.input) if name])
    source = graph.node[at].input[slot]
    copied = f"{source}/copy{at}"
    graph.node[at].input[slot] = copied
    graph.node.insert(at, onnx.helper.make_node("Identity", [source], [copied], name=copied))
    return True


def another_input(rnd: random.Random, graph: onnx.GraphProto) -> bool:
    node = rnd.choice([n for n in graph.node if n.input])
    others = [n for n in graph.node if n.op_type == node.op_type and len(n.input) >= len(node.input)]
    slot = rnd.randrange(len(node.input))
    node.input[slot] = rnd.choice(others).input[slot]
    return True


CHANGES: tuple[Change, ...] = (another_operator, another_attribute, another_constant, a_copy_between, another_input)


def computed(path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What the model gives; None where ONNX Runtime refuses it, or something is not finite."""
    try:
        values = run_ort(path, given)
    except Exception:  # its errors have no type of their own
        return None
    return values if all(np.isfinite(v).all() for v in values) else None


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_stay_what_they_were(change: Change, seed: int, tmp_path: Path) -> None:
    rnd, compared = random.Random(f"{change.__name__} {seed}"), 0
    for attempt in range(ATTEMPTS):
        name = rnd.choice(NAMES)
        proto = original(name)
        size = rnd.choice(CASES[name].sizes)
        given = feeds(proto, size, np.random.default_rng(attempt))
        if not change(rnd, proto.graph):
            continue
        onnx.save(proto, tmp_path / "changed.onnx")
        before = computed(tmp_path / "changed.onnx", given)
        if before is None:
            continue
        try:
            model = ir.load(tmp_path / "changed.onnx")
            compile.optimize(model, Recipe.preset("none", SCHEMES))
        except InternalError:
            raise
        except ModelError:  # ONNX Runtime allows more than shape inference
            continue
        after = run_ort(ir.save(model, tmp_path / "after.onnx")[0], given)
        for a, b in zip(after, before, strict=True):
            assert a.shape == b.shape, (name, attempt)
            assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b), (name, attempt)
        compared += 1
        if compared == COMPARED:
            return
    pytest.fail(f"only {compared} changed graphs could be compared")
