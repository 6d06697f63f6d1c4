"""Lowering canonical linears to M-ANT: which op, what it shares, what its statistics decide, and refusals."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.calibrate import collect
from graphopt.core.op import OpSpec
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.errors import CalibrationError
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes import SCHEMES
from graphopt.passes.canonicalize.ops import LINEAR, RMS_NORM
from graphopt.passes.mant import Mant
from graphopt.passes.mant.config import MantConfig
from tests.support.arrays import activations, weight
from tests.support.canonical import CanonicalMlp

SCHEME = Mant()
NAMES = ("q", "k", "o")


def lower(model: Model, statistics: Statistics | None = None, *, dry_run: bool = False, **settings: Any) -> Report:
    report = Report()
    assignment = dict.fromkeys(NAMES, MantConfig.model_validate(settings))
    SCHEME.lower(model, assignment, statistics, report, dry_run=dry_run)
    return report


def spec_of(name: str) -> OpSpec:
    return next(s for s in SCHEME.ops if s.name == name)


def measured(model: Model, rng: np.random.Generator, *, second_moment: bool) -> Statistics:
    return collect(model, [{"x": activations(rng, 2, 60, 24)}], second_moment=second_moment)


@pytest.mark.parametrize(
    ("settings", "op"),
    [
        ({}, "MANTLinear"),
        ({"types": "nf4"}, "MANTLinear"),
        ({"types": "int4"}, "MANTLinear"),
        ({"bits": "w4a8"}, "MANTLinearW4A8"),
        ({"bits": "w4a8", "one_pass": True}, "MANTLinearInt8"),
    ],
)
def test_settings_choose_the_op(settings: dict[str, Any], op: str, rng: np.random.Generator) -> None:
    model = CanonicalMlp.random(rng).model
    report = lower(model, **settings)
    assert [f.status for f in report.findings] == ["rewritten"] * 3
    nodes = [n for n in model.graph.nodes if n.name in NAMES]
    assert {n.op for n in nodes} == {op}
    for finding, node in zip(report.findings, nodes, strict=True):
        assert finding.reason.startswith(f"{op} ({settings.get('types', 'mant')}), groups of 64")
        stored = [
            t for p, t in zip(spec_of(op).inputs, node.inputs, strict=True) if p.name in ("codes", "types", "scale")
        ]
        assert finding.detail["bytes_after"] == sum(weights.nbytes(t) for t in stored)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("one_pass", [False, True])
def test_kernels_are_told_whether_to_be_exact(exact: bool, one_pass: bool, rng: np.random.Generator) -> None:
    model = CanonicalMlp.random(rng).model
    lower(model, bits="w4a8", one_pass=one_pass, exact=exact)
    assert {n.attrs["exact"] for n in model.graph.nodes if n.name in NAMES} == {int(exact)}


@pytest.mark.parametrize("activations_", ["token", "group"])
def test_linears_that_read_one_tensor_share_its_quantizing_op(activations_: str, rng: np.random.Generator) -> None:
    model = CanonicalMlp.random(rng).model
    lower(model, bits="w4a8", activations=activations_, group=32)
    nodes = {n.name: n for n in model.graph.nodes}
    assert sum(n.op == "MANTQuantize" for n in nodes.values()) == 2
    assert nodes["q"].inputs[0] is nodes["k"].inputs[0]
    assert nodes["q"].inputs[1] is nodes["k"].inputs[1]
    assert nodes["o"].inputs[1].shape[-1] == (1 if activations_ == "token" else 2)


def test_statistics_decide_what_auto_means(rng: np.random.Generator) -> None:
    def reason(statistics: Statistics | None) -> str:
        return lower(CanonicalMlp.random(rng).model, statistics).findings[0].reason

    model = CanonicalMlp.random(rng).model
    assert "by weight error, clipped, nearest" in reason(None)
    assert "by diagonal error, clipped, nearest" in reason(measured(model, rng, second_moment=False))
    assert "by output error, clipped, gptq" in reason(measured(model, rng, second_moment=True))


def test_second_moments_lower_the_output_error(rng: np.random.Generator) -> None:
    """Each step of knowledge helps: weight error, output error, GPTQ."""
    mlp = CanonicalMlp.random(np.random.default_rng(5))
    statistics = measured(mlp.model, rng, second_moment=True)
    moment = statistics.linears["q"].second_moment
    assert moment is not None
    errors = []
    for settings in ({"search": "weight"}, {"search": "output"}, {"search": "output", "rounding": "gptq"}):
        model = CanonicalMlp.random(np.random.default_rng(5)).model
        lower(model, statistics, **({"rounding": "nearest", "group": 32} | settings))
        node = next(n for n in model.graph.nodes if n.name == "q")
        operands = [weights.read(t) for t in node.inputs[1:]]
        (w,) = spec_of("MANTLinear").evaluate(np.eye(24, dtype=np.float32), *operands, group=32)
        d = (w - mlp.wq).T.astype(np.float64)
        errors.append(np.einsum("nk,kj,nj->", d, moment, d))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("settings", "second_moment", "message"),
    [
        ({"search": "output"}, False, "search 'output' of 'q' needs statistics with second moments"),
        ({"rounding": "gptq"}, False, "rounding 'gptq' of 'q' needs statistics with second moments"),
        ({"search": "diagonal"}, None, "search 'diagonal' of 'q' needs statistics"),
    ],
)
def test_settings_that_need_statistics_say_so(
    settings: dict[str, Any], second_moment: bool | None, message: str, rng: np.random.Generator
) -> None:
    model = CanonicalMlp.random(rng).model
    statistics = None if second_moment is None else measured(model, rng, second_moment=second_moment)
    with pytest.raises(CalibrationError, match=message):
        lower(model, statistics, **settings)
    with pytest.raises(CalibrationError, match=message):
        lower(model, statistics, dry_run=True, **settings)


def test_a_matrix_that_is_no_second_moment_is_refused(rng: np.random.Generator) -> None:
    model = CanonicalMlp.random(rng).model
    entry = LinearStatistics(np.ones(24, np.float32), np.ones(24), 10, -np.eye(24, dtype=np.float32))
    statistics = measured(model, rng, second_moment=True)
    statistics.linears["q"] = entry
    with pytest.raises(CalibrationError, match="positive semi-definite"):
        lower(model, statistics)


def test_the_catalogue_fuses_quantization_into_the_producer(rng: np.random.Generator) -> None:
    """One scale per token: MixQ's op in place of the norm; one per group: our own op behind the norm."""
    for activations_, op in (("token", "MixQRMSNorm"), ("group", "MANTQuantize")):
        x = gs.Variable("x", np.float32, ["n", 64])
        h, y = gs.Variable("h", np.float32, ["n", 64]), gs.Variable("y", np.float32, ["n", 24])
        nodes = [
            RMS_NORM.node("norm", [x, gs.Constant("gamma", np.ones(64, np.float32))], [h]),
            LINEAR.node("q", [h, gs.Constant("w", weight(rng, 64, 24))], [y]),
        ]
        model = Model(gs.Graph(nodes, [x], [y], opset=18))
        settings = MantConfig(bits="w4a8", activations=activations_)
        SCHEMES["mant"].lower(model, {"q": settings}, None, Report(), dry_run=False)
        kinds = [n.op for n in model.graph.nodes]
        assert op in kinds
        assert ("RMSNorm" in kinds) == (activations_ == "group")
