"""Cases of the program host_v3 as files, and the comparison of what it wrote with the numpy evaluators."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from mant_cases import MantCase
from mixq_cases import EPSILON, LinearCase, QuantizeCase, row_error

Case = QuantizeCase | LinearCase | MantCase

#: Element types as host_v3 spells them.
NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
    np.dtype(np.int8): "i8",
    np.dtype(np.int32): "i32",
}
_WEIGHTS = ("wq", "wq4", "sg", "wo", "codes", "types", "scale", "table")
_QUANTIZE_INPUTS = ("x", "other", "gamma", "beta", "idx")


def _operands(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of the plugin, in its order."""
    if not isinstance(case, QuantizeCase):
        return case.inputs(rng)
    every = case.inputs(rng)
    return {name: every[name] for name in _QUANTIZE_INPUTS if name in every}


def _fields(case: Case) -> list[str]:
    if not isinstance(case, QuantizeCase):
        exact = ["field exact i 1"] if isinstance(case, MantCase) and case.exact else []
        return exact if case.op in ("MixQLinear", "MixQLinearAdd") else [*exact, f"field group i {case.group}"]
    if case.producer == "MixQQuantize":
        return []
    fields = ["field emit_y i 1"]
    if case.norm:
        fields.append(f"field epsilon f {EPSILON!r}")
    if case.adds:
        fields.append("field emit_sum i 1")
    return fields


def write(folder: Path, cases: Sequence[Case], rng_for: Callable[[Case], np.random.Generator]) -> dict[str, Case]:
    """Write cases.txt and the operands; return the cases by the names that host_v3 prints."""
    lines, named = [], {}
    for number, case in enumerate(cases):
        name = f"case{number}"
        named[name] = case
        lines += [f"case {name} {case.op}", *_fields(case)]
        for operand, value in _operands(case, rng_for(case)).items():
            file = f"{name}.{operand}.in"
            (folder / file).write_bytes(value.tobytes())
            weight = value.ndim != 2 or operand in _WEIGHTS
            shape = value.shape if weight else (1, *value.shape)
            lines.append(f"input {NAMES[value.dtype]} {file} {' '.join(map(str, shape))}")
        lines.append("end")
    (folder / "cases.txt").write_text("\n".join(lines) + "\n")
    return named


def run(host: Path, library: Path, folder: Path) -> str:
    """Run the cases in ``folder`` and return what host_v3 prints: shapes and types of the outputs that it wrote.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([host, library, folder], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"host_v3 failed: {done.stderr.strip()}")
    return done.stdout


def read(folder: Path, name: str, printed: str) -> list[np.ndarray]:
    """Outputs of the case ``name``, from the files written and the shapes and types printed."""
    outputs = []
    for line in printed.splitlines():
        case, index, kind, *shape = line.split()
        if case == name:
            dtype = next(d for d, n in NAMES.items() if n == kind)
            raw = np.frombuffer((folder / f"{name}.{index}.bin").read_bytes(), dtype)
            outputs.append(raw.reshape([int(s) for s in shape]))
    return outputs


def compare(case: Case, outputs: Sequence[np.ndarray], rng: np.random.Generator) -> float:
    """Return the worst row error of y.

    Raises:
        AssertionError: the outputs do not belong together, or their shapes are wrong.
    """
    operands = _operands(case, rng)
    if not isinstance(case, QuantizeCase):
        (y,) = outputs
        assert y.shape == (1, case.m, case.n), f"y has the shape {y.shape}"
        return row_error(y[0], case.expected(operands))
    want, want_sum = case.produced(operands)
    *quantized, rest = *outputs[:3], outputs[3:]
    y = rest[-1] if rest else operands["x"][None]
    for got, (name, expected) in zip(quantized, case.quantized(y, operands["idx"]).items(), strict=True):
        assert got.shape == expected.shape, f"{name} has the shape {got.shape}, not {expected.shape}"
        same = np.array_equal(got.astype(np.float64), expected.astype(np.float64), equal_nan=True)
        assert same, f"{name} is not that of the plugin's own y"
    if case.adds:
        assert np.array_equal(rest[0][0].astype(np.float64), want_sum.astype(np.float64), equal_nan=True), "sum"
    return row_error(y[0], want, case.slack(operands))
