"""Online prediction through the plugins, as TensorRT drives them: cases of the program host_v3, and their comparison.

python3 benchmarks/online_plugins.py --library LIB --host HOST_V3      compare with the evaluators
python3 benchmarks/online_plugins.py --write-cases FOLDER              only write the cases, for compute-sanitizer
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import v3_cases
from mixq_cases import EPSILON, QuantizeCase, numerics, row_error

from graphopt.numerics.packing import pack_int4

PRODUCERS = (
    *("MixQQuantize", "MixQRMSNorm", "MixQAddRMSNorm", "MixQLayerNorm", "MixQAddLayerNorm"),
    *("MixQGatedSilu", "MixQGatedGelu", "MixQGatedGeluTanh", "MixQGelu", "MixQGeluTanh"),
)
TYPES = ("float32", "float16", "bfloat16")
CAPACITY = 48
SIGMA_RMS = 4.0


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(frozen=True)
class Case:
    """A node: op, fields as lines of cases.txt, and inputs in order."""

    op: str
    dtype: str
    fields: tuple[str, ...]
    inputs: dict[str, np.ndarray]

    def lines(self, name: str, folder: Path) -> Iterator[str]:
        yield f"case {name} {self.op}"
        yield from self.fields
        for operand, value in self.inputs.items():
            file = f"{name}.{operand}.in"
            (folder / file).write_bytes(value.tobytes())
            activation = operand in ("x", "other", "xq", "sx", "xo")
            shape = (1, *value.shape) if activation else value.shape
            yield f"input {v3_cases.NAMES[value.dtype]} {file} {' '.join(map(str, shape))}"
        yield "end"


def quantizing(producer: str, dtype: str, m: int, k: int) -> Case:
    case = QuantizeCase(producer, dtype, m, k, 32, special=True)
    made = case.inputs(np.random.default_rng(m + k))
    listed = np.sort(made["idx"][made["idx"] >= 0])[::2]
    made["idx"] = numerics.pad_indices(listed, 32)
    fields = [f"field sigma f 0.0\nfield sigma_rms f {SIGMA_RMS}\nfield capacity i {CAPACITY}"]
    if producer != "MixQQuantize":
        fields.append("field emit_y i 1")
    if case.norm:
        fields.append(f"field epsilon f {EPSILON!r}")
    if case.adds:
        fields.append("field emit_sum i 1")
    order = ("x", "other", "gamma", "beta", "idx")
    return Case(f"{producer}Online", dtype, tuple(fields), {n: made[n] for n in order if n in made})


def linear(op: str, dtype: str, m: int, n: int, k: int) -> Case:
    rng, kind = np.random.default_rng(m * n + k), _dtype(dtype)
    idx = numerics.pad_indices(rng.choice(k, 5, replace=False), 16)
    more = np.unique(np.concatenate([idx[idx >= 0], rng.choice(k, 9, replace=False)]))
    extended = numerics.pad_indices(more, CAPACITY)
    x = rng.standard_normal((m, k), np.float32)
    x[:, more] *= 30
    xq, sx, xo = numerics.quantize_rows(x.astype(kind), extended)
    w = rng.standard_normal((n, k), np.float32).astype(kind)
    bias = rng.standard_normal(n, np.float32).astype(kind)
    common = {"xq": xq, "sx": sx, "xo": xo}
    after = {"bias": bias, "idx": idx, "set": extended}
    if op == "MixQLinearOnline":
        wq, sw, wo = numerics.quantize_weight(w, idx)
        return Case(op, dtype, (), {**common, "wq": wq, "sw": sw, "wo": wo, **after})
    codes, scale, wo = numerics.quantize_rows(w, idx, 4)
    sg = rng.integers(1, 19, (-(-k // 64), n)).astype(np.int8)
    weight = {"wq4": pack_int4(codes), "sg": sg, "sw": scale[:, 0] / 10, "wo": wo}
    return Case(op, dtype, ("field group i 64",), {**common, **weight, **after})


def cases() -> Iterator[Case]:
    for dtype in TYPES:
        for producer, (m, k) in itertools.product(PRODUCERS, ((0, 64), (9, 512), (40, 1024), (5, 100))):
            yield quantizing(producer, dtype, m, k)
        for op, (m, n, k) in itertools.product(
            ("MixQLinearOnline", "MixQLinearW4A8Online"), ((1, 40, 64), (40, 136, 256), (300, 520, 128))
        ):
            yield linear(op, dtype, m, n, k)
    yield quantizing("MixQQuantize", "float16", 1500, 256)  # a warp for each row


def write(folder: Path) -> dict[str, Case]:
    named = {f"online{i}": case for i, case in enumerate(cases())}
    (folder / "cases.txt").write_text("\n".join(s for n, c in named.items() for s in c.lines(n, folder)) + "\n")
    return named


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True))


def compare(case: Case, outputs: list[np.ndarray]) -> None:
    """Raise AssertionError where the outputs are not those of the evaluators."""
    if "Linear" in case.op:
        given = case.inputs
        wc = given.get("wq")
        if wc is None:
            k = given["xq"].shape[1]
            low, high = given["wq4"].view(np.uint8) & 15, given["wq4"].view(np.uint8) >> 4
            nibbles = np.concatenate([low.reshape(len(low), -1, 16), high.reshape(len(high), -1, 16)], axis=2)
            codes = ((nibbles.reshape(len(low), -1)[:, :k] ^ 8).astype(np.int16) - 8).astype(np.int8)
            wc = numerics.grouped_codes(codes, given["sg"], 64)
        dequantized = wc[:, given["set"]].astype(np.float32) * given["sw"][:, None]
        columns = numerics.extend_columns(given["wo"], given["idx"], given["set"], dequantized)
        want = numerics.linear(*(given[n] for n in ("xq", "sx", "xo")), wc, given["sw"], columns, given["bias"])
        error = row_error(outputs[0][0], want)
        assert error <= numerics.ROW_TOLERANCE[case.dtype], f"row error {error:.1e}"
        return
    xq, sx, xo, *rest, predicted = outputs
    y = rest[-1][0] if rest else case.inputs["x"]
    want = numerics.predict_outliers(y, case.inputs["idx"], sigma=0, sigma_rms=SIGMA_RMS, capacity=CAPACITY)
    assert same(predicted, want), f"set {predicted[:12]} is not {want[:12]}"
    for name, got, expected in zip(("xq", "sx", "xo"), (xq, sx, xo), numerics.quantize_rows(y, want), strict=True):
        assert same(got[0], expected), f"{name} is not that of the set"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--host", type=Path)
    parser.add_argument("--write-cases", type=Path)
    options = parser.parse_args()
    if options.write_cases:
        options.write_cases.mkdir(parents=True, exist_ok=True)
        write(options.write_cases)
        return
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        named = write(Path(folder))
        printed = v3_cases.run(options.host, options.library, Path(folder))
        for name, case in named.items():
            try:
                compare(case, v3_cases.read(Path(folder), name, printed))
            except AssertionError as e:
                shape = "x".join(map(str, next(iter(case.inputs.values())).shape))
                failures.append(f"{case.op}<{case.dtype}> {shape}: {e}")
    print(f"online prediction through plugins: {len(named)} cases, {len(failures)} failed")
    print("\n".join(failures[:40]))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
