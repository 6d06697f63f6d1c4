"""Canonical linears -> M-ANT.

    Linear(x, W)  =>  MANTLinear(x, codes, types, scale, table, bias)                       w4a16
    Linear(x, W)  =>  MANTQuantize(x) -> xq, sx;  MANTLinearW4A8(xq, sx, ...)               w4a8
    Linear(x, W)  =>  MANTQuantize(x) -> xq, sx;  MANTLinearInt8(xq, sx, ..., table, ...)   w4a8, one pass

Linears that read one tensor share its quantizing op. With one scale per token it may be another scheme's, which fuses
it into the norm or activation that makes x; the catalogue decides that.
"""

__all__ = ["Mant"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel

from graphopt.core.canonical import InputQuantizer, LinearView, assigned, bias_of
from graphopt.core.op import OpSpec
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics, require_second_moment
from graphopt.errors import CalibrationError
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.numerics.second_order import SecondMoment
from graphopt.passes.mant import ops
from graphopt.passes.mant.config import PRESETS, MantConfig
from graphopt.passes.mant.weight import Calibration, QuantizedWeight, quantize_weight, table_of

STAGE = "lower-mant"


class Mant:
    """The scheme of "M-ANT: Efficient Low-Bit Group Quantization for LLMs via Mathematically Adaptive Numerical Type"
    (HPCA'25).

    Args:
        quantize: makes the int8 input of w4a8 linears that have one scale per token; None for an op of our own.
    """

    name = "mant"
    config: type[BaseModel] = MantConfig
    presets = PRESETS
    ops = ops.OPS

    def __init__(self, quantize: InputQuantizer | None = None) -> None:
        self._quantize = quantize

    def lower(
        self,
        model: Model,
        assignment: Mapping[str, Any],
        statistics: Statistics | None,
        report: Report,
        *,
        dry_run: bool,
    ) -> None:
        """See `graphopt.core.scheme.Scheme.lower`."""
        planned: list[tuple[LinearView, _Plan, LinearStatistics | None]] = []
        for linear, config in assigned(model, assignment, report, stage=STAGE, scheme=self.name):
            entry = None if statistics is None else statistics.of(linear.name, linear.shape[1])
            planned.append((linear, _Plan.of(linear, config, entry), entry))
        moments = _Moments()
        inputs = _Inputs(model, [(linear, plan) for linear, plan, _ in planned], self._quantize)
        report.begin(STAGE, len(planned))
        for linear, plan, entry in planned:
            if dry_run:
                report.rewritten(STAGE, self.name, linear.name, plan.described())
                continue
            report.step(linear.name)
            weight = quantize_weight(linear, plan.config, moments.calibration(linear, plan, entry))
            if weight.vanished:
                lost = f"{weight.vanished} groups of its weights are too small for float16 scales and became zeros"
                report.note(STAGE, self.name, linear.name, lost)
            detail = _replace(model, linear, plan, weight, inputs)
            report.rewritten(STAGE, self.name, linear.name, plan.described(), **detail)
        if not dry_run:
            model.tidy()


@dataclass(frozen=True)
class _Plan:
    """What one linear becomes; ``search`` and ``rounding`` are what 'auto' has come to."""

    config: MantConfig
    spec: OpSpec
    search: str
    rounding: str

    @classmethod
    def of(cls, linear: LinearView, config: MantConfig, entry: LinearStatistics | None) -> "_Plan":
        """Raises CalibrationError: the settings need statistics that are missing."""
        spec = ops.LINEAR if config.bits == "w4a16" else ops.LINEAR_INT8 if config.one_pass else ops.LINEAR_W4A8
        known = entry is not None and entry.second_moment is not None
        search = config.search
        if search == "auto":
            search = "weight" if entry is None else "output" if known else "diagonal"
        rounding = config.rounding
        if rounding == "auto":
            rounding = "gptq" if known else "nearest"
        for setting, value, needs in (("search", search, "output"), ("rounding", rounding, "gptq")):
            if value == needs:
                require_second_moment(entry, f"{setting} '{value}'", linear.name)
        if search == "diagonal" and entry is None:
            raise CalibrationError(
                f"search 'diagonal' of '{linear.name}' needs statistics; make them with 'graphopt calibrate'"
            )
        return cls(config, spec, search, rounding)

    def described(self) -> str:
        """The op, and how its weight is quantized."""
        config = self.config
        chosen = f", by {self.search} error" if config.types == "mant" or config.clip else ""
        clipped = ", clipped" if config.clip else ""
        return f"{self.spec.name} ({config.types}), groups of {config.group}{chosen}{clipped}, {self.rounding}"


class _Moments:
    """Second moments as linears need them; those of the last input are kept, since the next linear often shares it."""

    def __init__(self) -> None:
        self._input: gs.Tensor | None = None
        self._prepared: dict[float, SecondMoment] = {}

    def calibration(self, linear: LinearView, plan: _Plan, entry: LinearStatistics | None) -> Calibration:
        """Return what quantization of ``linear`` under ``plan`` takes of ``entry``."""
        if entry is None:
            return Calibration()
        importance = None if plan.search == "weight" else entry.mean_square
        blocks = _diagonal_blocks(entry.second_moment, plan.config.group) if plan.search == "output" else None
        if plan.rounding == "nearest" or entry.second_moment is None:
            return Calibration(importance, blocks)
        if self._input is not linear.x:
            self._input, self._prepared = linear.x, {}
        damping = plan.config.damping
        if damping not in self._prepared:
            self._prepared[damping] = SecondMoment(entry.second_moment, np.ones(entry.channels, bool), damping)
        return Calibration(importance, blocks, self._prepared[damping])


def _diagonal_blocks(moment: np.ndarray | None, group: int) -> np.ndarray:
    """Return (G, g, g) float32: E x_gᵀ x_g of each group of channels, 0 beyond the last channel."""
    assert moment is not None
    k = len(moment)
    blocks = np.zeros((-(-k // group), group, group), np.float32)
    for g, block in enumerate(blocks):
        part = moment[g * group : (g + 1) * group, g * group : (g + 1) * group]
        block[: len(part), : len(part)] = part
    return blocks


class _Inputs:
    """The int8 inputs of w4a8 linears, made once for each tensor and group of columns with one scale.

    Args:
        model: changed.
        planned: all linears that are about to be lowered.
        quantize: for inputs with one scale per token.
    """

    def __init__(
        self, model: Model, planned: Sequence[tuple[LinearView, _Plan]], quantize: InputQuantizer | None
    ) -> None:
        self._model, self._quantize = model, quantize
        self._readers: dict[tuple[int, int], list[LinearView]] = {}
        self._made: dict[tuple[int, int], list[gs.Tensor]] = {}
        for linear, plan in planned:
            if plan.spec is not ops.LINEAR:
                self._readers.setdefault(_key(linear, plan.config), []).append(linear)

    def quantized(self, linear: LinearView, config: MantConfig) -> list[gs.Tensor]:
        """Return [xq, sx] of the input of ``linear``."""
        key = _key(linear, config)
        if key not in self._made:
            if config.activations == "token" and self._quantize is not None:
                self._made[key] = list(self._quantize(self._model, self._readers[key]))
            else:
                self._made[key] = self._by_group(linear, key[1])
        return self._made[key]

    def _by_group(self, linear: LinearView, group: int) -> list[gs.Tensor]:
        x, k = linear.x, linear.shape[1]
        stem = self._model.unique_name(f"{x.name}_mant")
        lead = list(x.shape[:-1]) if x.shape else None
        kinds = {"xq": (np.int8, k), "sx": (np.float32, -(-k // group))}
        made: list[gs.Tensor] = [
            gs.Variable(f"{stem}_{name}", kind, None if lead is None else [*lead, last])
            for name, (kind, last) in kinds.items()
        ]
        self._model.graph.nodes.append(ops.QUANTIZE.node(stem, [x], made, group=group))
        return made


def _key(linear: LinearView, config: MantConfig) -> tuple[int, int]:
    """Linears with the same key share their quantized input: tensor, and columns with one scale."""
    return id(linear.x), config.group if config.activations == "group" else linear.shape[1]


def _replace(model: Model, linear: LinearView, plan: _Plan, weight: QuantizedWeight, inputs: _Inputs) -> dict[str, Any]:
    """Swap a canonical linear for an M-ANT one; return sizes and normalized errors for the report."""
    n, k = linear.shape
    base, store, bias = linear.weight.name, model.store, bias_of(model, linear)
    arrays = {"codes": weight.codes, "types": ops.pack_types(weight.ids), "scale": weight.scales}
    table = table_of(plan.config)
    if plan.spec is ops.LINEAR:
        arrays["table"] = table.values.astype(np.float16)
    elif plan.spec is ops.LINEAR_INT8:
        arrays["table"] = table.integers()
    x = [linear.x] if plan.spec is ops.LINEAR else inputs.quantized(linear, plan.config)
    constants = [store.put(model.unique_name(f"{base}_{s}"), a) for s, a in arrays.items()]
    output, before = linear.node.outputs[0], weights.nbytes(linear.weight)
    linear.node.outputs.clear()
    linear.node.inputs.clear()
    settings = {"group": plan.config.group} | ({} if plan.spec is ops.LINEAR else {"exact": plan.config.exact})
    model.graph.nodes.append(plan.spec.node(linear.name, [*x, *constants, bias], [output], **settings))
    after = sum(a.nbytes for name, a in arrays.items() if name != "table")
    detail = {"N": n, "K": k, "bytes_before": before, "bytes_after": after, "weight_error": weight.error}
    return detail if weight.output_error is None else {**detail, "output_error": weight.output_error}
