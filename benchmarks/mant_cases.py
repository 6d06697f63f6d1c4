"""Inputs of M-ANT's linears, and what the numpy evaluators make of them."""

import importlib.util
import types
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from graphopt.numerics.packing import pack_int4

# trt_plugins/mant/linear/policy.h
_MOST_EXACT_TOKENS = 32
MOST_HALF_TOKENS = 128
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def _by_path(name: str) -> types.ModuleType:
    """A module of passes/mant by path: graphopt.passes needs more packages than a GPU host has."""
    path = Path(__file__).resolve().parents[1] / f"passes/mant/{name}.py"
    spec = importlib.util.spec_from_file_location(f"mant_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numerics, mant_types = _by_path("linear_numerics"), _by_path("types")


@dataclass(frozen=True)
class MantCase:
    """One call of a linear of M-ANT.

    Attributes:
        op: plugin name.
        dtype: name of T.
        m, n, k: sizes.
        group: columns that share a type and a scale.
        by_group: whether tokens have a scale for each group.
        nf4: whether the table is NF4's, whose negative codes do not mirror the positive ones.
        exact: whether weights may not be rounded before the product of int8 activations.
        special: whether a token holds NaN, one is all zeros, a group's scale is 0 and another's huge.
    """

    op: str
    dtype: str
    m: int
    n: int
    k: int
    group: int = 64
    by_group: bool = False
    nf4: bool = False
    special: bool = True
    exact: bool = False

    def inputs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The operands, in the plugin's order."""
        dtype = _DTYPES[self.dtype]
        groups = -(-self.k // self.group)
        x = rng.standard_normal((self.m, self.k), np.float32)
        x[:, rng.choice(self.k, min(3, self.k), replace=False)] *= 40
        xq = rng.integers(-127, 128, (self.m, self.k), np.int8)
        sx = rng.uniform(0.005, 0.02, (self.m, groups if self.by_group else 1)).astype(np.float32)
        scale = rng.uniform(0.01, 0.1, (groups, self.n)) / np.sqrt(self.k)
        if self.special and self.m >= 4:
            x[1, self.k // 2], x[2] = np.nan, 0
            sx[1, -1], sx[2] = np.inf, 0
        if self.special and self.n > 1:
            scale[0, 0], scale[-1, 1] = 0, 50
        ids = np.zeros((groups, self.n), int) if self.nf4 else rng.integers(0, mant_types.TYPES, (groups, self.n))
        return {
            **({"x": x.astype(dtype)} if self.op == "MANTLinear" else {"xq": xq, "sx": sx}),
            # Codes of the padding mean nothing: they are random, too.
            "codes": pack_int4(rng.integers(-8, 8, (self.n, -(-self.k // 32) * 32)).astype(np.int8)),
            "types": numerics.pack_types(ids),
            "scale": scale.astype(np.float16),
            **({} if self.op == "MANTLinearW4A8" else {"table": self._table()}),
            "bias": rng.standard_normal(self.n, np.float32).astype(dtype),
        }

    def _table(self) -> np.ndarray:
        table = mant_types.NF4 if self.nf4 else mant_types.MANT
        return table.rounded().integers() if self.op == "MANTLinearInt8" else table.values.astype(np.float16)

    @property
    def folds(self) -> bool:
        """Whether scales are taken into the weights before the product: dozens of tokens on Hopper, aligned."""
        step = 8 if self.op == "MANTLinear" else 16
        shape = self.m > _MOST_EXACT_TOKENS and self.n % 8 == 0 and self.k % step == 0
        power = self.group >= self.k or (self.group >= 64 and self.group & (self.group - 1) == 0)
        return shape and power and self.dtype != "float32" and not self.by_group and not self.exact

    def _folded(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """y of rounded weights."""
        weight = [given[name] for name in ("codes", "types", "scale")]
        if self.op == "MANTLinearInt8" and self.m > MOST_HALF_TOKENS:
            w, row = numerics.row_bytes(*weight, given["table"], self.k, group=self.group)
            x, w = given["xq"], w.astype(np.float64) * row[:, None]
        else:
            table = mant_types.MANT.values.astype(np.float16) if self.op == "MANTLinearW4A8" else given["table"]
            if self.op == "MANTLinearInt8":
                table = (table / 128).astype(np.float16)
            w = numerics.row_halves(*weight, table, self.k, group=self.group).astype(np.float64)
            x = given["x" if self.op == "MANTLinear" else "xq"]
        sx = given.get("sx", np.ones((self.m, 1))).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            y = (x.astype(np.float64) @ w.T) * sx + given["bias"].astype(np.float64)
            return np.asarray(y.astype(np.float32).astype(given["bias"].dtype))

    def expected(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """y of the numpy evaluator; where scales are taken into the weights, of weights rounded as the kernels do."""
        given = dict(inputs)
        if self.op == "MANTLinear":
            if self.dtype == "bfloat16":  # to which the kernels round the table
                given["table"] = given["table"].astype(ml_dtypes.bfloat16)
            if self.folds:
                return self._folded(given)
            return numerics.linear(**given, group=self.group)
        if self.folds:
            return self._folded(given)
        shape = (mant_types.TYPES, mant_types.CODES)
        if self.op == "MANTLinearW4A8":
            given["tables"] = np.broadcast_to(mant_types.split_tables()[:, None, :], (2, *shape))
            given["factors"] = mant_types.split_factors()
        else:
            given["tables"] = given.pop("table")[None]
            given["factors"] = np.full((1, mant_types.TYPES), 1 / 128)
        return numerics.integer_linear(**given, group=self.group)

    def __str__(self) -> str:
        kind = f"{' by group' if self.by_group else ''}{' NF4' if self.nf4 else ''}"
        kind += " exact" if self.exact else ""
        return f"{self.op}<{self.dtype}> M={self.m} N={self.n} K={self.k} group={self.group}{kind}"
