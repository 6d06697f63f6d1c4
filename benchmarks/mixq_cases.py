"""Inputs of MixQ ops with planted outliers, and what the numpy evaluators make of them."""

import importlib.util
import types
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from graphopt.numerics import layers
from graphopt.numerics.packing import pack_int4, unpack_int4


def _evaluators() -> types.ModuleType:
    """passes/mixq/numerics.py by path: graphopt.passes needs more packages than a GPU host has."""
    path = Path(__file__).resolve().parents[1] / "passes/mixq/numerics.py"
    spec = importlib.util.spec_from_file_location("mixq_numerics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numerics = _evaluators()

EPSILON = 1e-5
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_ACTIVATIONS = {"Silu": layers.silu, "Gelu": layers.gelu, "GeluTanh": layers.gelu_tanh}
_GLUS = {f"MixQ{glu}": activation for activation, glu in layers.GLUS.items()}
#: Share of the outlier slots in use; the rest is padding.
_FILLED = 0.8


@dataclass(frozen=True)
class QuantizeCase:
    """One call of a quantizing op.

    Attributes:
        producer: plugin name.
        dtype: name of T.
        rows, cols, capacity: M, K, C.
        special: whether some rows hold NaN, Inf or only zeros.
        bits: of a code, 8 or 4.
        nothing_left: whether every channel is an outlier.
    """

    producer: str
    dtype: str
    rows: int
    cols: int
    capacity: int
    special: bool = False
    bits: int = 8
    nothing_left: bool = False

    @property
    def op(self) -> str:
        """Plugin name."""
        return self.producer if self.bits == 8 else f"{self.producer}4"

    def quantized(self, y: np.ndarray, idx: np.ndarray) -> dict[str, np.ndarray]:
        """xq or xq4, sx and xo of y."""
        xq, sx, xo = numerics.quantize_rows(y, idx, self.bits)
        return {**({"xq": xq} if self.bits == 8 else {"xq4": pack_int4(xq)}), "sx": sx, "xo": xo}

    @property
    def adds(self) -> bool:
        return "Add" in self.producer

    @property
    def gates(self) -> bool:
        return "Gated" in self.producer

    @property
    def glu(self) -> bool:
        """Whether gate and up are side by side in x [M, 2K]."""
        return self.producer in _GLUS

    @property
    def norm(self) -> str | None:
        return next((kind for kind in ("RMSNorm", "LayerNorm") if self.producer.endswith(kind)), None)

    def inputs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """x [, other] [, gamma] [, beta], idx, by their names in the C API."""
        dtype = _DTYPES[self.dtype]
        filled = self.cols if self.nothing_left else min(int(self.capacity * _FILLED), (self.cols + 1) // 2)
        channels = rng.choice(self.cols, filled, replace=False)
        x = rng.standard_normal((self.rows, self.cols), np.float32)
        x[:, channels] *= rng.uniform(10, 60, filled).astype(np.float32)
        result = {"idx": numerics.pad_indices(channels, self.capacity)}
        if self.adds or self.gates:
            result["other"] = rng.standard_normal((self.rows, self.cols), np.float32).astype(dtype)
        if self.special and self.rows >= 8:
            plain = next(k for k in range(self.cols) if k not in set(channels.tolist()))
            x[1, plain], x[2, plain], x[3, plain] = np.nan, np.inf, -np.inf
            x[4, channels[0]] = np.nan
            x[5] = 0
            x[6] += 300  # a mean far above the deviation
            x[7] = 7.25
            if "other" in result:
                result["other"][[5, 7]] = 0
        if self.norm:
            result["gamma"] = rng.uniform(0.5, 1.5, self.cols).astype(dtype)
        if self.norm == "LayerNorm":
            result["beta"] = rng.standard_normal(self.cols).astype(dtype)
        if self.glu:
            x = np.concatenate([x, rng.standard_normal(x.shape, np.float32)], axis=1)
        with np.errstate(over="ignore"):
            result["x"] = x.astype(dtype)
        return result

    def produced(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """What the evaluator quantizes, y, and the sum of an add producer. Both of type T."""
        x, other = inputs["x"], inputs.get("other")
        with np.errstate(invalid="ignore", over="ignore"):
            total = None
            if self.adds:
                x = total = (x.astype(np.float32) + other.astype(np.float32)).astype(x.dtype)
            if self.norm == "RMSNorm":
                return layers.rms_norm(x, inputs["gamma"], EPSILON), total
            if self.norm == "LayerNorm":
                return layers.layer_norm(x, inputs["gamma"], inputs["beta"], EPSILON), total
            if self.producer == "MixQQuantize":
                return x, None
            if self.glu:
                return layers.gated(_ACTIVATIONS[_GLUS[self.producer]], *np.split(x, 2, axis=1)), None
            activation = _ACTIVATIONS[self.producer.removeprefix("MixQ").removeprefix("Gated")]
            return layers.gated(activation, x, other if self.gates else np.ones((), x.dtype)), None

    def slack(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """How many times the tolerance a row of y may be off, [M].

        Kernel and evaluator both round the mean of a layer norm in float32 about ten times (levels of a tree of sums,
        the division), each time by 2^-24 of it, which is |mean| / deviation as much of what is normalized.
        """
        if self.norm != "LayerNorm" or self.dtype != "float32":
            return np.ones(self.rows)
        v = inputs["x"].astype(np.float64) + inputs["other"] if self.adds else inputs["x"].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.abs(v.mean(-1)) / v.std(-1)
        return 1 + 2 * 10 * 2.0**-24 * np.where(np.isfinite(ratio), ratio, 0) / numerics.ROW_TOLERANCE[self.dtype]

    def __str__(self) -> str:
        return f"{self.op}<{self.dtype}> M={self.rows} K={self.cols} C={self.capacity}"


@dataclass(frozen=True)
class LinearCase:
    """One call of a linear: M, N, K, C and the name of T.

    Attributes:
        special: whether the scales of two rows are not finite and one row is zero.
        op: plugin name.
        group: columns that share an integer scale, of the linears with 4-bit weights.
    """

    dtype: str
    m: int
    n: int
    k: int
    capacity: int
    special: bool = False
    op: str = "MixQLinear"
    group: int = 64

    @property
    def kind(self) -> str:
        """Name of the plugin without a residual."""
        return self.op.removesuffix("Add")

    @property
    def adds(self) -> bool:
        """Whether there is a residual."""
        return self.op.endswith("Add")

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the inputs, in the plugin's order."""
        x = "xq4" if self.kind == "MixQLinearW4A4" else "xq"
        weight = ("wq",) if self.kind == "MixQLinear" else ("wq4", "sg")
        return (x, "sx", "xo", *weight, "sw", "wo", "bias", *(("residual",) if self.adds else ()))

    def inputs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The operands, in the plugin's order."""
        weights = self.weights(rng)
        every = {**weights, **self.activations(rng, weights["idx"])}
        return {name: every[name] for name in self.operands}

    def expected(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """y of the numpy evaluator."""
        given = dict(inputs)
        xq = given["xq"] if "xq" in given else unpack_int4(given["xq4"], self.k)
        if "wq4" in given:
            given["wq"] = numerics.grouped_codes(unpack_int4(given["wq4"], self.k), given["sg"], self.group)
        operands = (given[name] for name in ("sx", "xo", "wq", "sw", "wo", "bias"))
        return numerics.linear(xq, *operands, residual=given.get("residual"))

    def _codes(self, rng: np.random.Generator, rows: int, bits: int, channels: np.ndarray) -> np.ndarray:
        largest = 2 ** (bits - 1) - 1
        codes = rng.integers(-largest, largest + 1, (rows, self.k), np.int8)
        codes[:, channels] = 0
        return codes

    def weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """wq, or wq4 and sg; sw, wo, bias and idx."""
        dtype = _DTYPES[self.dtype]
        filled = min(int(self.capacity * _FILLED), (self.k + 1) // 2)
        idx = numerics.pad_indices(rng.choice(self.k, filled, replace=False), self.capacity)
        if self.kind == "MixQLinear":
            codes = {"wq": self._codes(rng, self.n, 8, idx[:filled])}
        else:
            scales = rng.integers(1, numerics.GROUP_SCALE_MAX + 1, (-(-self.k // self.group), self.n), np.int8)
            codes = {"wq4": pack_int4(self._codes(rng, self.n, 4, idx[:filled])), "sg": scales}
        wo = rng.standard_normal((self.n, self.capacity), np.float32) * np.float32(0.05)
        wo[:, filled:] = 0
        return {
            "idx": idx,
            **codes,
            "sw": rng.uniform(0.5e-3, 2e-3, self.n).astype(np.float32),
            "wo": wo.astype(dtype),
            "bias": rng.standard_normal(self.n, np.float32).astype(dtype),
        }

    def activations(self, rng: np.random.Generator, idx: np.ndarray) -> dict[str, np.ndarray]:
        """xq or xq4, sx, xo and residual."""
        filled = int((idx >= 0).sum())
        bits = 4 if self.kind == "MixQLinearW4A4" else 8
        xq = self._codes(rng, self.m, bits, idx[:filled])
        sx = rng.uniform(0.005, 0.02, (self.m, 1)).astype(np.float32)
        xo = rng.standard_normal((self.m, self.capacity), np.float32) * 20
        xo[:, filled:] = 0
        if self.special and self.m >= 8:
            sx[1], sx[2] = np.nan, np.inf
            xq[1], xq[2] = 0, 0
            sx[3], xq[3], xo[3] = 0, 0, 0
        codes = {"xq4": pack_int4(xq)} if bits == 4 else {"xq": xq}
        dtype = _DTYPES[self.dtype]
        made = {**codes, "sx": sx, "xo": xo.astype(dtype)}
        if self.adds:
            made["residual"] = (rng.standard_normal((self.m, self.n), np.float32) * 5).astype(dtype)
        return made

    def __str__(self) -> str:
        return f"{self.op}<{self.dtype}> M={self.m} N={self.n} K={self.k} C={self.capacity} group={self.group}"


def row_error(got: np.ndarray, want: np.ndarray, slack: np.ndarray | None = None) -> float:
    """Largest ||got - want|| / ||want|| over the finite rows; infinite if the two differ in which rows are finite.

    ``slack`` [M] divides the error of a row.
    """
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want).all(-1)
    if not np.array_equal(finite, np.isfinite(got).all(-1)):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = np.linalg.norm(got[finite] - want[finite], axis=-1)
    error = difference / np.maximum(np.linalg.norm(want[finite], axis=-1), 1e-30)
    return float(np.max(error if slack is None else error / slack[finite]))
