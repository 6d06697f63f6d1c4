"""Every custom op, found through the catalogue: its function body computes what its numpy evaluator computes.

The evaluator is the oracle. ONNX Runtime (optimizations off) and onnx.reference run the body; kernels are held to the
same evaluator in tests/cuda and tests/trt_plugins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.core.op import OpSpec, attach_bodies
from graphopt.ir import Model
from graphopt.ir.export import to_proto
from graphopt.ir.weights import onnx_dtype
from graphopt.numerics.packing import unpack_int4
from graphopt.passes import OPS
from tests.support.arrays import FLOATS
from tests.support.runtime import run_ort, run_reference

OPSETS = (17, 18, 21, 23)
RUNNERS = {"onnxruntime": run_ort, "reference": run_reference}

#: Normalized error ||a - b|| / ||b|| allowed by activation dtype. Both sides round the same float32 value to T, half an
#: ulp each (2^-11 and 2^-8 relative), and sum in another order (float32: 2^-24 times a few hundred terms).
TOLERANCE = {"float32": 2e-5, "float16": 2**-10, "bfloat16": 2**-7}
#: Attention rounds its scores to T before it exponentiates them: an ulp of a score of s is s ulps of its weight, and
#: |s| <= |q| |k| < 64 for the values used here.
FAMILY_FACTOR = {"Attention": 64}
#: What float32 leaves of sums that cancel (1 + erf(x) for a very negative x), relative to the largest row.
CANCELLATION = 2**-24
#: The absolute error of ONNX Runtime's sigmoid, a quotient of polynomials: some ulps of 1/2, even where it is near 0.
SIGMOID = 2**-22
#: Share of int8 codes that may differ, by one step each: values that lie on a rounding boundary, at most one in an ulp
#: of T out of a code's width (the largest code, 127, is 128 ulps of bfloat16 wide).
BOUNDARY_CODES = {"float32": 0.001, "float16": 0.01, "bfloat16": 0.02}

# Infinities and products beyond float16 are meant; numpy warns of them where onnx.reference or an evaluator meets them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

by_name = pytest.mark.parametrize("spec", OPS, ids=lambda s: s.name)
#: Ops over a cache mix the tokens of a sequence and keep other outputs than rows: the tests of their folder cut and
#: poison them.
by_rows_name = pytest.mark.parametrize("spec", [s for s in OPS if s.family != "CachedAttention"], ids=lambda s: s.name)
by_dtype = pytest.mark.parametrize("dtype", FLOATS)
by_runner = pytest.mark.parametrize("runner", RUNNERS)


def model_of(
    spec: OpSpec, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], opset: int, **attrs: Any
) -> onnx.ModelProto:
    """Return a model of one node of ``spec`` with every dimension dynamic."""
    given = [
        gs.Variable(p.name, onnx_dtype(a.dtype), [f"{p.name}_{i}" for i in range(a.ndim)])
        for p, a in zip(spec.inputs, inputs, strict=True)
    ]
    made = [
        gs.Variable(p.name, onnx_dtype(a.dtype), [None] * a.ndim) for p, a in zip(spec.outputs, outputs, strict=True)
    ]
    model = Model(gs.Graph([spec.node("node", given, made, **attrs)], given, made, opset=opset, name=spec.name))
    attach_bodies(model, OPS)
    return to_proto(model)


def run(runner: str, spec: OpSpec, proto: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        return RUNNERS[runner](proto, {p.name: a for p, a in zip(spec.inputs, inputs, strict=True)})
    except NotImplementedError as e:
        pytest.skip(f"{runner}: {e}")


def check(
    spec: OpSpec, dtype: str, inputs: Sequence[np.ndarray], runner: str = "onnxruntime", opset: int = 18, **attrs: Any
) -> None:
    """Assert that the body agrees with the evaluator on ``inputs``."""
    expected = spec.evaluate(*inputs, **attrs)
    proto = model_of(spec, inputs, expected, opset, **attrs)
    got = run(runner, spec, proto, inputs)
    for param, a, b in zip(spec.outputs, got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), param.name
        if b.dtype == np.int8:
            if param.name == "xq4":
                a, b = (unpack_int4(codes, 2 * codes.shape[-1]) for codes in (a, b))
            apart = np.abs(a.astype(np.int32) - b.astype(np.int32))
            if any(p.name == "sx" for p in spec.outputs):
                # A row with a scale that is not finite has no meaningful codes.
                apart *= np.isfinite(scale_of(spec, expected)).all(axis=-1, keepdims=True)
                assert apart.max(initial=0) <= 1, param.name
            assert np.count_nonzero(apart) <= max(1, BOUNDARY_CODES[dtype] * b.size), param.name
        else:
            tolerance = TOLERANCE[dtype] * FAMILY_FACTOR.get(spec.family, 1)
            assert_close(a, b, tolerance, param.name, SIGMOID * gates(spec, inputs))


def gates(spec: OpSpec, inputs: Sequence[np.ndarray]) -> np.ndarray | float:
    """The norms (...) of the rows of gate times up, before the activation function; 0 for ops without one."""
    if spec.family != "GatedAct":
        return 0.0
    given = dict(zip([p.name for p in spec.inputs], inputs, strict=True))
    factors = np.split(given["gate_up"], 2, axis=-1) if "gate_up" in given else list(inputs[: 1 + ("up" in given)])
    product = np.prod([f.astype(np.float64) for f in factors], axis=0)
    return np.asarray(np.linalg.norm(np.nan_to_num(product, posinf=0, neginf=0), axis=-1))


def scale_of(spec: OpSpec, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The scales (..., 1) of the rows of a quantizing op."""
    return next(a for p, a in zip(spec.outputs, outputs, strict=True) if p.name == "sx")


def assert_close(a: np.ndarray, b: np.ndarray, tolerance: float, name: str, floor: np.ndarray | float = 0.0) -> None:
    """Compare row by row, so that a row of outliers hides no other; non-finite values must be the same."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(b)
    np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=name)
    rows = -1 if a.ndim > 1 else None
    size = np.linalg.norm(np.where(finite, b, 0), axis=rows)
    error = np.linalg.norm(np.subtract(a, b, where=finite, out=np.zeros_like(a)), axis=rows)
    allowed = tolerance * size + CANCELLATION * np.max(size, initial=0) + floor
    if np.any(error > allowed):
        pytest.fail(f"{name}: normalized error up to {np.max(error / np.maximum(size, 1e-300)):.3g} > {tolerance:.3g}")


def resized(spec: OpSpec, inputs: Sequence[np.ndarray], axis: int, size: int) -> list[np.ndarray]:
    """Cut one dimension of the first input to ``size``, and every dimension of the same length in the others.

    Examples use a different length for every meaning, so equal lengths mean the same thing.
    """
    old = inputs[0].shape[axis]
    assert inputs[0].shape.count(old) == 1, f"{spec.name}: the example uses the length {old} twice"
    halves = axis == -1 and spec.inputs[0].name == "gate_up"  # each of them is cut
    channels = np.iinfo(np.int32).max if axis != -1 else size // 2 if halves else size
    cut = []
    for param, array in zip(spec.inputs, inputs, strict=True):
        if halves and param.name == "gate_up":
            array = np.concatenate([half[..., : size // 2] for half in np.split(array, 2, axis=-1)], axis=-1)
        array = array[tuple(slice(size) if n == old else slice(None) for n in array.shape)]
        if param.name in ("idx", "set"):
            kept = array[(array >= 0) & (array < channels)]
            array = np.concatenate([kept, np.full(len(array) - len(kept), -1, array.dtype)])
        cut.append(np.ascontiguousarray(array))
    return cut


def test_names_are_unique_and_every_family_has_one() -> None:
    names = [s.name for s in OPS]
    assert len(set(names)) == len(names) > 0
    assert all(s.family and s.doc for s in OPS)


@by_name
def test_bodies_are_valid_for_every_opset(spec: OpSpec, rng: np.random.Generator) -> None:
    inputs = spec.examples(rng, np.float32)
    for opset in range(15, 24):
        proto = model_of(spec, inputs, spec.evaluate(*inputs), opset)
        onnx.checker.check_model(proto, full_check=True)
        names = [n.name for n in proto.functions[0].node]
        assert len(set(names)) == len(names) and all(names)


@by_name
def test_examples_are_fresh_and_random(spec: OpSpec) -> None:
    a, b = (spec.examples(np.random.default_rng(seed), np.float32) for seed in (1, 2))
    assert len(a) == len(spec.inputs)
    assert not np.array_equal(a[0], b[0])
    floats = [np.abs(x) for x in a if x.dtype == np.float32 and x.ndim > 1 and np.isfinite(x).all()]
    assert max(x.max() / np.sqrt(np.mean(x**2)) for x in floats) > 4, "no outliers"


@pytest.mark.parametrize("opset", OPSETS)
@by_runner
@by_dtype
@by_name
def test_body_equals_evaluator(spec: OpSpec, dtype: str, runner: str, opset: int, rng: np.random.Generator) -> None:
    check(spec, dtype, spec.examples(rng, FLOATS[dtype]), runner, opset)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@by_runner
@by_rows_name
def test_any_number_of_tokens(spec: OpSpec, tokens: int, runner: str, rng: np.random.Generator) -> None:
    """The shapes of the model are dynamic; no token at all is legal and gives empty outputs."""
    check(spec, "float32", resized(spec, spec.examples(rng, np.float32), -2, tokens), runner)


@by_dtype
@by_rows_name
def test_odd_tails(spec: OpSpec, dtype: str, rng: np.random.Generator) -> None:
    inputs = spec.examples(rng, FLOATS[dtype])
    width = inputs[0].shape[-1]
    # Rotary turns halves into each other, so its width stays even, as that of a gate and up side by side; packed codes
    # are whole vectors of bytes.
    tails = {"Rotary": (width - 2,), "gate_up": (width - 2, width - 6), "xq4": (width - 16, width - 32)}
    first = spec.family if spec.family in tails else spec.inputs[0].name
    for size in tails.get(first, (width - 1, width - 3, 5)):
        check(spec, dtype, resized(spec, inputs, -1, size))


def other(value: float | int) -> float | int:
    """Another legal value of an attribute: a float is changed, a flag is flipped, a size is doubled."""
    if isinstance(value, float):
        return value * 3 + 0.125
    return 1 - value if value in (0, 1) else 2 * value


@by_runner
@by_name
def test_attributes(spec: OpSpec, runner: str, rng: np.random.Generator) -> None:
    for attribute in spec.attributes:
        inputs = list(spec.examples(rng, np.float32))
        if attribute.name == "trans_w":
            inputs[1] = np.ascontiguousarray(inputs[1].T)
        # Codes of fewer bits are read from the same bytes; of more, there would be too few bytes.
        value = int(attribute.default) // 2 if attribute.name == "bits" else other(attribute.default)
        check(spec, "float32", inputs, runner, **{attribute.name: value})


def with_row(inputs: Sequence[np.ndarray], row: int, value: float) -> list[np.ndarray]:
    """Set one token of the first input to ``value``: all its channels, or the first one where it is not finite."""
    first = inputs[0].copy()
    if np.isfinite(value):
        first[..., row, :] = value
    else:
        first[..., row, 0] = value
    return [first, *inputs[1:]]


@pytest.mark.parametrize("value", [0.0, 6e4, -6e4, 6e-8])
@by_dtype
@by_rows_name
def test_rows_of_extreme_values(spec: OpSpec, dtype: str, value: float, rng: np.random.Generator) -> None:
    inputs = spec.examples(rng, FLOATS[dtype])
    if inputs[0].dtype == np.int8:
        value = float(np.clip(value, -127, 127))
    if spec.family == "Attention":
        value /= 16384  # scores below 64, see FAMILY_FACTOR; neighbouring float16 scores near 6e4 are 32 apart
    if "AddLayerNorm" in spec.name and dtype == "float32":
        value /= 16384  # the mean is subtracted: near 6e4, float32 leaves 1e-3 of a residual of size 1
    check(spec, dtype, with_row(inputs, 1, value))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@by_runner
@by_rows_name
def test_nan_and_inf_touch_their_own_row_only(
    spec: OpSpec, value: float, runner: str, rng: np.random.Generator
) -> None:
    inputs = spec.examples(rng, np.float32)
    at = 1 if inputs[0].dtype == np.int8 else 0  # a linear reads its codes' scale second
    row = 1  # row 2 of the attention example sees nothing at all
    # Rows of zeros, residuals too, because what is predicted from a row may change how the others are quantized.
    alike = [a.shape == inputs[at].shape for a in inputs]
    clean = spec.evaluate(*(with_row([a], row, 0.0)[0] if same else a for a, same in zip(inputs, alike, strict=True)))
    poisoned = [*inputs[:at], *with_row(inputs[at:], row, value)]
    expected = spec.evaluate(*poisoned)
    for outputs in (expected, run(runner, spec, model_of(spec, poisoned, expected, 18), poisoned)):
        for param, a, b in zip(spec.outputs, outputs, clean, strict=True):
            if a.ndim > 1:
                a, b = np.delete(a, row, axis=-2), np.delete(b, row, axis=-2)
            assert_close(a, b, TOLERANCE["float32"], param.name)
        spoilt = {
            p.name: (~np.isfinite(a[..., row, :])).any(axis=-1)
            for p, a in zip(spec.outputs, outputs, strict=True)
            if a.dtype not in (np.int8, np.int32)
        }
        if "xo" in spoilt:  # outlier channels carry their own values, and the scale is that of the others
            spoilt["sx"] |= spoilt.pop("xo")
        assert all(s.all() for s in spoilt.values()), spoilt
