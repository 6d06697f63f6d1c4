"""Invented dimensions are replaced where the canonical form proves them equal to others, and only there."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.op import DOMAIN
from graphopt.core.report import Report
from graphopt.ir.model import Model
from graphopt.passes.canonicalize.unify_symbols import unify_symbols

Q, KV = ["batch", 4, "sequence", 16], ["batch", 2, "total", 16]


def tensor(name: str, shape: list[Any]) -> gs.Variable:
    return gs.Variable(name, np.float32, list(shape))


def model(nodes: list[gs.Node]) -> Model:
    inputs = [t for n in nodes for t in n.inputs if not t.inputs]
    return Model(gs.Graph(nodes, inputs, [nodes[-1].outputs[0]], opset=18))


def test_attention_gives_the_sequence_of_q_and_the_symbol_changes_everywhere() -> None:
    mask = tensor("mask", ["batch", 1, "unk__1", "unk__2"])
    heads, flat = tensor("heads", ["batch", 4, "unk__6", 16]), tensor("flat", ["batch", "unk__6", 4, 16])
    attention = gs.Node(
        "Attention",
        "attention",
        {"scale": 0.25},
        [tensor("q", Q), tensor("k", KV), tensor("v", KV), mask],
        [heads],
        DOMAIN,
    )
    transpose = gs.Node("Transpose", "t", {"perm": [0, 2, 1, 3]}, [heads], [flat])
    unify_symbols(model([attention, transpose]), Report())
    assert heads.shape == Q
    assert flat.shape == ["batch", "sequence", 4, 16]
    assert mask.shape == ["batch", 1, "unk__1", "unk__2"]


def test_a_chain_of_residuals_is_resolved_in_one_visit() -> None:
    x, r = tensor("x", ["batch", "sequence", 64]), tensor("r", ["batch", "unk__6", 64])
    s, h, y = (tensor(n, ["batch", f"unk__{i}", 64]) for i, n in ((9, "s"), (10, "h"), (12, "y")))
    h.shape[1] = "unk__6"
    norm = gs.Node("RMSNorm", "norm", {}, [x, gs.Constant("gamma", np.ones(64, np.float32))], [h], DOMAIN)
    graph = model([norm, gs.Node("Add", "add", {}, [x, r], [s]), gs.Node("Mul", "mul", {}, [s, s], [y])])
    unify_symbols(graph, Report())
    assert [t.shape for t in (h, r, s, y)] == [["batch", "sequence", 64]] * 4


@pytest.mark.parametrize("other", [[1, 1, 64], ["batch", "other", 64], ["batch", None, 64]])
def test_what_is_not_proven_stays(other: list[Any]) -> None:
    total = tensor("s", ["batch", "unk__9", 64])
    graph = model([gs.Node("Add", "add", {}, [tensor("x", ["batch", "sequence", 64]), tensor("r", other)], [total])])
    unify_symbols(graph, Report())
    assert total.shape == ["batch", "unk__9", 64]


def test_a_linear_keeps_its_own_last_dimension() -> None:
    y = tensor("y", ["unk__1", "unk__2", 24])
    weight = gs.Constant("w", np.ones((64, 24), np.float32))
    graph = model(
        [gs.Node("Linear", "l", {"trans_w": 0}, [tensor("x", ["batch", "sequence", 64]), weight], [y], DOMAIN)]
    )
    unify_symbols(graph, Report())
    assert y.shape == ["batch", "sequence", 24]
