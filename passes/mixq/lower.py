"""Canonical linears -> MixQ: linears that read one tensor share a quantizing op, fused into the tensor's producer.

    RMSNorm(Add(x, r)) -> y;  Linear(y, Wq), Linear(y, Wk), Linear(y, Wv)
      =>  MixQAddRMSNorm(x, r) -> xq, sx, xo, sum;  MixQLinear(xq, sx, xo, ...) three times, or merged

The outlier set belongs to the tensor and so to the whole group; every weight of the group is quantized around it. The
linears of a group agree on the bits of the activation; how their weights are stored is their own affair. With online
prediction the ops are those that end in "Online", and the linears read the set that their quantizing op predicts.
"""

__all__ = ["SCHEME", "MixQ", "quantize_input"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel

from graphopt.core.canonical import LinearView, assigned, bias_of
from graphopt.core.fusion import adds_activations, take_producer
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics, require_second_moment
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.numerics.packing import packed_bytes
from graphopt.passes.mixq import merge, numerics, ops
from graphopt.passes.mixq.config import PRESETS, MixQConfig, OutlierConfig
from graphopt.passes.mixq.rounding import SecondMoment
from graphopt.passes.mixq.weight import QuantizedWeight, quantize_weight

STAGE = "lower-mixq"
_LINEARS = {"w8a8": ops.LINEAR, "w4a8": ops.LINEAR_W4A8, "w4a4": ops.LINEAR_W4A4}


@dataclass
class _Group:
    """Linears with the same input tensor, quantized in the same way; each with its settings."""

    x: gs.Tensor
    bits: int
    outliers: OutlierConfig
    linears: list[tuple[LinearView, MixQConfig]]


@dataclass(frozen=True)
class _Outliers:
    """The outlier channels of a group's input.

    Attributes:
        indices: (C,) int32, known now: ascending, padded with -1.
        capacity: of a call, if more are predicted ``online``.
        online: whether they are.
    """

    indices: np.ndarray
    capacity: int
    online: bool

    @property
    def detail(self) -> dict[str, Any]:
        """For the report."""
        return {"outliers": int((self.indices >= 0).sum()), "capacity": self.capacity, "online": self.online}


@dataclass(frozen=True)
class _Codes:
    """What the quantizing op of a group hands to its linears: before their weights (xq, sx, xo), and after them."""

    op: str
    before: list[gs.Tensor]
    after: list[gs.Tensor] = field(default_factory=list)


class MixQ:
    """The scheme of "MixQ: Taming Dynamic Outliers in Mixed-Precision Quantization by Online Prediction" (SC'24)."""

    name = "mixq"
    config: type[BaseModel] = MixQConfig
    presets = PRESETS
    ops = ops.OPS

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
        groups = self._groups(model, assignment, report)
        report.begin(STAGE, sum(len(group.linears) for group in groups))
        for group in groups:
            _check_statistics(group, statistics)
            outliers = _select(group, statistics)
            if statistics is None and group.outliers.select != "none":
                known = "outliers are predicted online" if outliers.online else "the outlier set is empty"
                report.note(STAGE, self.name, group.linears[0][0].name, f"no calibration: {known}")
            if dry_run:
                for product in merge.batches(model, group.linears):
                    for linear, config in product:
                        reason = _described(config, _entry(statistics, linear), outliers) + _together(product)
                        others = _others(linear, product)
                        report.rewritten(STAGE, self.name, linear.name, reason, **outliers.detail, product_with=others)
                continue
            _lower_group(model, group, outliers, statistics, report)
        if not dry_run:
            model.tidy()

    def _groups(self, model: Model, assignment: Mapping[str, Any], report: Report) -> list[_Group]:
        """Collect the assigned linears that can be lowered, in graph order; refuse the others with a reason."""
        groups: dict[tuple[int, int, OutlierConfig], _Group] = {}
        for linear, config in assigned(model, assignment, report, stage=STAGE, scheme=self.name):
            key = id(linear.x), config.activation_bits, config.outliers
            group = groups.setdefault(key, _Group(linear.x, config.activation_bits, config.outliers, []))
            group.linears.append((linear, config))
        return list(groups.values())


SCHEME = MixQ()


def _check_statistics(group: _Group, statistics: Statistics | None) -> None:
    for linear, config in group.linears:
        entry = _entry(statistics, linear)
        if config.rounding == "gptq":
            require_second_moment(entry, "rounding 'gptq'", linear.name)
        if statistics is None or (group.outliers.select == "none" and _choose_rounding(config, entry) == "nearest"):
            continue
        statistics.of(linear.name, linear.shape[1])


def _entry(statistics: Statistics | None, linear: LinearView) -> LinearStatistics | None:
    return None if statistics is None else statistics.linears.get(linear.name)


def _choose_rounding(config: MixQConfig, entry: LinearStatistics | None) -> str:
    if config.rounding != "auto":
        return config.rounding
    return "nearest" if entry is None or entry.second_moment is None else "gptq"


def _described(config: MixQConfig, entry: LinearStatistics | None, outliers: _Outliers) -> str:
    """The op that a linear becomes, and how its weight is rounded where there is a choice."""
    name = ops.variant(_LINEARS[config.bits], online=outliers.online).name
    if config.bits == "w8a8" and config.rounding == "nearest" and not config.clip:
        return name
    group = f", groups of {config.group}" if config.group else ""
    return f"{name}{group}, {_choose_rounding(config, entry)}{', clipped' if config.clip else ''}"


def _select(group: _Group, statistics: Statistics | None) -> _Outliers:
    settings = group.outliers
    entry = _entry(statistics, group.linears[0][0])
    chosen = np.zeros(0, np.int32)
    if entry is not None and settings.select != "none":
        chosen = numerics.select_outliers(
            entry.absmax,
            entry.rms,
            rule=settings.select,
            threshold=settings.threshold,
            multiple=settings.multiple,
            top=settings.top,
            capacity=settings.capacity,
        )
    indices = numerics.pad_indices(chosen, _slots(chosen.size))
    if not settings.predicts(calibrated=entry is not None):
        return _Outliers(indices, indices.size, online=False)
    return _Outliers(indices, min(settings.capacity, _slots(group.linears[0][0].shape[1])), online=True)


def _slots(channels: int) -> int:
    """The smallest capacity that holds ``channels``."""
    return max(1, -(-channels // numerics.CAPACITY_STEP)) * numerics.CAPACITY_STEP


def _lower_group(
    model: Model, group: _Group, outliers: _Outliers, statistics: Statistics | None, report: Report
) -> None:
    products, channels = merge.batches(model, group.linears), group.linears[0][0].shape[1]
    codes = _quantize(model, group, outliers)
    moments: dict[float, SecondMoment] = {}

    def quantized(linear: LinearView, config: MixQConfig) -> QuantizedWeight:
        report.step(linear.name)
        entry = _entry(statistics, linear)
        moment = None
        if entry is not None and entry.second_moment is not None and _choose_rounding(config, entry) == "gptq":
            if config.damping not in moments:
                inner = ~numerics.outlier_mask(outliers.indices, entry.channels)
                moments[config.damping] = SecondMoment(entry.second_moment, inner, config.damping)
            moment = moments[config.damping]
        importance = None if entry is None else entry.mean_square
        return quantize_weight(linear, outliers.indices, config, importance=importance, moment=moment)

    for product in products:
        parts = [quantized(linear, config) for linear, config in product]
        before = [weights.nbytes(linear.weight) for linear, _ in product]
        _replace_linears(model, [linear for linear, _ in product], product[0][1], codes, parts)
        for (linear, config), weight, size in zip(product, parts, before, strict=True):
            reason = f"{_described(config, _entry(statistics, linear), outliers)}, input from {codes.op}"
            reason += _together(product)
            sizes = {"N": weight.rows, "K": channels, "bytes_before": size}
            report.rewritten(
                STAGE, MixQ.name, linear.name, reason, **outliers.detail, **sizes, **_costs(weight),
                product_with=_others(linear, product),
            )  # fmt: skip


def _together(product: Sequence[merge.Configured]) -> str:
    """That several linears are one product, for the report; which ones is in its details."""
    return f", one product of {len(product)} linears" if len(product) > 1 else ""


def _others(linear: LinearView, product: Sequence[merge.Configured]) -> list[str]:
    """The linears that ``linear`` is one product with."""
    return [other.name for other, _ in product if other is not linear]


def _costs(weight: QuantizedWeight) -> dict[str, float]:
    """Size and normalized errors for the report."""
    costs = {"bytes_after": weight.nbytes, "weight_error": weight.error}
    return costs if weight.output_error is None else {**costs, "output_error": weight.output_error}


def _quantize(model: Model, group: _Group, outliers: _Outliers) -> _Codes:
    """Insert the quantizing op of a group."""
    x, first = group.x, group.linears[0][0]
    channels = first.shape[1]
    dtype = weights.onnx_dtype(first.weight.dtype)
    lead = list(x.shape[:-1]) if x.shape else None
    stem = model.unique_name(f"{x.name}_mixq")

    def variable(suffix: str, kind: Any, last: int) -> gs.Variable:
        return gs.Variable(f"{stem}_{suffix}", kind, None if lead is None else [*lead, last])

    width = channels if group.bits == 8 else packed_bytes(channels)
    outputs = [variable("xq", np.int8, width), variable("sx", np.float32, 1), variable("xo", dtype, outliers.capacity)]
    idx = gs.Constant(f"{stem}_idx", outliers.indices)
    predicted = [gs.Variable(f"{stem}_set", np.int32, [outliers.capacity])] if outliers.online else []
    settings = group.outliers
    attrs: dict[str, Any] = {}
    if outliers.online:
        attrs = {"sigma": settings.sigma, "sigma_rms": settings.sigma_rms, "capacity": outliers.capacity}
    fusion = take_producer(
        model,
        x,
        [linear.node for linear, _ in group.linears],
        lambda suffix: variable(suffix, dtype, channels),
        halves=merge.gate_up_of,
    )
    spec, inputs, more = ops.QUANTIZE, [x], []
    if fusion is not None:
        spec, inputs, more, attrs = ops.FUSED[fusion.name], fusion.inputs, fusion.outputs, fusion.attributes | attrs
    spec = ops.variant(spec, bits=group.bits, online=outliers.online)
    node = spec.node(stem, [*inputs, idx], [*outputs, *more, *predicted], **attrs)
    model.graph.nodes.append(node)
    return _Codes(node.op, outputs, [idx, *predicted] if outliers.online else [])


def quantize_input(model: Model, readers: Sequence[LinearView]) -> tuple[gs.Tensor, gs.Tensor]:
    """Quantize the input of linears of another scheme: see `graphopt.core.canonical.InputQuantizer`. No outliers."""
    settings = OutlierConfig(select="none")
    group = _Group(readers[0].x, 8, settings, [(linear, MixQConfig()) for linear in readers])
    none = numerics.pad_indices(np.zeros(0, np.int32), numerics.CAPACITY_STEP)
    xq, sx, _ = _quantize(model, group, _Outliers(none, none.size, online=False)).before
    return xq, sx


def _residual_of(model: Model, output: gs.Tensor) -> gs.Node | None:
    """Return the Add of a residual that is all that reads ``output``."""
    add = query.sole_consumer(model.graph, output)
    return add if adds_activations(add) and add.inputs[0] is not add.inputs[1] else None


def _replace_linears(
    model: Model,
    linears: Sequence[LinearView],
    config: MixQConfig,
    codes: _Codes,
    parts: Sequence[QuantizedWeight],
) -> None:
    """Swap canonical linears for one MixQ linear, and a Split where they are several."""
    name, base = merge.SEPARATOR.join(linear.name for linear in linears), linears[0].weight.name
    operands = merge.stack(parts)
    constants = [model.store.put(model.unique_name(f"{base}_{suffix}"), array) for suffix, array in operands.items()]
    bias, *more = [bias_of(model, linear) for linear in linears]
    if more:
        stacked = np.concatenate([weights.read(b) for b in (bias, *more)])
        bias = model.store.put(model.unique_name(f"{base}_biases"), stacked)
    attributes = {} if parts[0].groups is None else {"group": parts[0].group}
    outputs = [linear.node.outputs[0] for linear in linears]
    for linear in linears:
        linear.node.outputs.clear()
        linear.node.inputs.clear()
    output, residual = outputs[0], []
    if len(linears) > 1:
        output = merge.split(model, outputs, [part.rows for part in parts])
    elif config.fuse_residual and (add := _residual_of(model, output)) is not None:
        residual = [tensor for tensor in add.inputs if tensor is not output]
        output = add.outputs[0]
        add.outputs.clear()
        add.inputs.clear()
    spec = ops.variant(_LINEARS[config.bits], online=bool(codes.after), residual=bool(residual))
    inputs = [*codes.before, *constants, bias, *residual, *codes.after]
    model.graph.nodes.append(spec.node(name, inputs, [output], **attributes))
