"""Canonical linears -> MixQ: linears that read one tensor share a quantizing op, fused into the tensor's producer.

    RMSNorm(Add(x, r)) -> y;  Linear(y, Wq), Linear(y, Wk), Linear(y, Wv)
      =>  MixQAddRMSNorm(x, r) -> xq, sx, xo, sum;  MixQLinear(xq, sx, xo, ...) three times

The outlier set belongs to the tensor and so to the whole group; every weight of the group is quantized around it. The
linears of a group agree on the bits of the activation; how their weights are stored is their own affair.
"""

__all__ = ["SCHEME", "MixQ"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel

from graphopt.core.canonical import LinearView, linears
from graphopt.core.op import DOMAIN, OpSpec
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.errors import CalibrationError, InternalError
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.numerics.packing import packed_bytes
from graphopt.passes.mixq import numerics, ops
from graphopt.passes.mixq.config import PRESETS, MixQConfig, OutlierConfig
from graphopt.passes.mixq.rounding import SecondMoment
from graphopt.passes.mixq.weight import QuantizedWeight, quantize_weight

STAGE = "lower-mixq"
_LINEARS = {"w8a8": ops.LINEAR, "w4a8": ops.LINEAR_W4A8, "w4a4": ops.LINEAR_W4A4}


@dataclass(frozen=True)
class _Producer:
    """How a canonical producer fuses: the op alone, and the op with a preceding residual Add (norms only)."""

    plain: OpSpec
    with_add: OpSpec | None = None


_PRODUCERS: dict[str, _Producer] = {
    "RMSNorm": _Producer(ops.RMS_NORM, ops.ADD_RMS_NORM),
    "LayerNorm": _Producer(ops.LAYER_NORM, ops.ADD_LAYER_NORM),
    **{f"Gated{name}": _Producer(spec) for name, spec in ops.GATED.items()},
    **{name: _Producer(spec) for name, spec in ops.GELUS.items()},
}


@dataclass
class _Group:
    """Linears with the same input tensor, quantized in the same way; each with its settings."""

    x: gs.Tensor
    bits: int
    outliers: OutlierConfig
    linears: list[tuple[LinearView, MixQConfig]]


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
        for group in self._groups(model, assignment, report):
            _check_statistics(group, statistics)
            outliers = _select(group, statistics)
            if not outliers.size and statistics is None and group.outliers.select != "none":
                report.note(STAGE, self.name, group.linears[0][0].name, "no calibration: the outlier set is empty")
            if dry_run:
                for linear, config in group.linears:
                    reason = _described(config, _entry(statistics, linear))
                    report.rewritten(STAGE, self.name, linear.name, reason, outliers=int(outliers.size))
                continue
            _lower_group(model, group, outliers, statistics, report)
        if not dry_run:
            model.tidy()

    def _groups(self, model: Model, assignment: Mapping[str, Any], report: Report) -> list[_Group]:
        """Collect the assigned linears that can be lowered, in graph order; refuse the others with a reason."""
        groups: dict[tuple[int, int, OutlierConfig], _Group] = {}
        for linear in linears(model):
            if linear.name not in assignment:
                continue
            if reason := linear.refusal():
                report.skipped(STAGE, self.name, linear.name, reason)
                continue
            config = assignment[linear.name]
            key = id(linear.x), config.activation_bits, config.outliers
            group = groups.setdefault(key, _Group(linear.x, config.activation_bits, config.outliers, []))
            group.linears.append((linear, config))
        return list(groups.values())


SCHEME = MixQ()


def _check_statistics(group: _Group, statistics: Statistics | None) -> None:
    for linear, config in group.linears:
        entry = _entry(statistics, linear)
        if config.rounding == "gptq" and (entry is None or entry.second_moment is None):
            raise CalibrationError(
                f"rounding 'gptq' of '{linear.name}' needs statistics with second moments; "
                "make them with 'graphopt calibrate --second-moment'"
            )
        if statistics is None or (group.outliers.select == "none" and _choose_rounding(config, entry) == "nearest"):
            continue
        statistics.of(linear.name, linear.shape[1])


def _entry(statistics: Statistics | None, linear: LinearView) -> LinearStatistics | None:
    return None if statistics is None else statistics.linears.get(linear.name)


def _choose_rounding(config: MixQConfig, entry: LinearStatistics | None) -> str:
    if config.rounding != "auto":
        return config.rounding
    return "nearest" if entry is None or entry.second_moment is None else "gptq"


def _described(config: MixQConfig, entry: LinearStatistics | None) -> str:
    """The op that a linear becomes, and how its weight is rounded where there is a choice."""
    name = _LINEARS[config.bits].name
    if config.bits == "w8a8" and config.rounding == "nearest" and not config.clip:
        return name
    group = f", groups of {config.group}" if config.group else ""
    return f"{name}{group}, {_choose_rounding(config, entry)}{', clipped' if config.clip else ''}"


def _select(group: _Group, statistics: Statistics | None) -> np.ndarray:
    """Return the outlier channels of the group's input, ascending."""
    settings = group.outliers
    entry = _entry(statistics, group.linears[0][0])
    if entry is None or settings.select == "none":
        return np.zeros(0, np.int32)
    return numerics.select_outliers(
        entry.absmax,
        entry.rms,
        rule=settings.select,
        threshold=settings.threshold,
        multiple=settings.multiple,
        top=settings.top,
        capacity=settings.capacity,
    )


def _lower_group(
    model: Model, group: _Group, outliers: np.ndarray, statistics: Statistics | None, report: Report
) -> None:
    capacity = max(numerics.CAPACITY_STEP, -(-outliers.size // numerics.CAPACITY_STEP) * numerics.CAPACITY_STEP)
    indices = numerics.pad_indices(outliers, capacity)
    quantized, how = _quantize(model, group, indices)
    moments: dict[float, SecondMoment] = {}
    for linear, config in group.linears:
        report.progress(f"{STAGE}: {linear.name}")
        entry = _entry(statistics, linear)
        moment = None
        if entry is not None and entry.second_moment is not None and _choose_rounding(config, entry) == "gptq":
            if config.damping not in moments:
                inner = ~numerics.outlier_mask(indices, entry.channels)
                moments[config.damping] = SecondMoment(entry.second_moment, inner, config.damping)
            moment = moments[config.damping]
        importance = None if entry is None else entry.mean_square
        weight = quantize_weight(linear, indices, config, importance=importance, moment=moment)
        detail = _replace_linear(model, linear, config, quantized, weight)
        reason = f"{_described(config, entry)}, input from {how}"
        report.rewritten(
            STAGE, MixQ.name, linear.name, reason, outliers=int(outliers.size), capacity=capacity, **detail
        )


def _quantize(model: Model, group: _Group, indices: np.ndarray) -> tuple[list[gs.Tensor], str]:
    """Insert the quantizing op of a group; return ([xq, sx, xo], name of the op)."""
    x, first = group.x, group.linears[0][0]
    channels = first.shape[1]
    dtype = weights.onnx_dtype(first.weight.dtype)
    lead = list(x.shape[:-1]) if x.shape else None
    stem = model.unique_name(f"{x.name}_mixq")

    def variable(suffix: str, kind: Any, last: int) -> gs.Variable:
        return gs.Variable(f"{stem}_{suffix}", kind, None if lead is None else [*lead, last])

    codes = channels if group.bits == 8 else packed_bytes(channels)
    outputs = [variable("xq", np.int8, codes), variable("sx", np.float32, 1), variable("xo", dtype, indices.size)]
    idx = gs.Constant(f"{stem}_idx", indices)
    lowered = {id(linear.node) for linear, _ in group.linears}
    emit_y = query.is_output(model.graph, x) or any(id(n) not in lowered for n in query.consumers(x))
    producer = query.producer(x)
    fused = _PRODUCERS.get(producer.op) if producer is not None and producer.domain == DOMAIN else None
    if producer is None or fused is None:
        node = ops.with_codes_of(group.bits, ops.QUANTIZE).node(stem, [x, idx], outputs)
        model.graph.nodes.append(node)
        return outputs, node.op
    attrs = {"epsilon": producer.attrs["epsilon"]} if "epsilon" in producer.attrs else {}
    inputs, spec, extra = list(producer.inputs), fused.plain, []
    if fused.with_add is not None and (add := _residual_add(inputs[0])) is not None:
        spec, inputs = fused.with_add, [*add.inputs, *inputs[1:]]
        total = add.outputs[0]
        emit_sum = query.is_output(model.graph, total) or len(query.consumers(total)) > 1
        if emit_sum:
            add.outputs.clear()
            extra.append(total)
        else:
            extra.append(variable("sum", dtype, channels))
        attrs["emit_sum"] = int(emit_sum)
    producer.outputs.clear()
    producer.inputs.clear()
    extra.append(x if emit_y else variable("y", dtype, channels))
    spec = ops.with_codes_of(group.bits, spec)
    node = spec.node(stem, [*inputs, idx], [*outputs, *extra], emit_y=int(emit_y), **attrs)
    model.graph.nodes.append(node)
    return outputs, node.op


def _residual_add(total: gs.Tensor) -> gs.Node | None:
    """Return the Add that makes ``total`` if it adds two activations of the same shape, which are known."""
    add = query.producer(total)
    if not query.is_op(add, "Add"):
        return None
    assert add is not None
    a, b = add.inputs
    same = a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape) and None not in a.shape
    return add if same and not query.is_constant(a) and not query.is_constant(b) else None


def _replace_linear(
    model: Model, linear: LinearView, config: MixQConfig, quantized: list[gs.Tensor], weight: QuantizedWeight
) -> dict[str, Any]:
    """Swap a canonical linear for a MixQ one; return sizes and normalized errors for the report."""
    n, k = linear.shape
    base, store, bias = linear.weight.name, model.store, linear.bias
    if bias is None:
        bias = store.put(model.unique_name(f"{base}_bias"), np.zeros(n, weight.outliers.dtype))
    elif list(bias.shape or []) != [n]:
        raise InternalError(f"bias of '{linear.name}' has shape {bias.shape}, canonical form promises [{n}]")
    arrays = {"wq": weight.codes, "sg": weight.groups, "sw": weight.scale, "wo": weight.outliers}
    constants = [store.put(model.unique_name(f"{base}_{s}"), a) for s, a in arrays.items() if a is not None]
    attributes = {} if weight.groups is None else {"group": weight.group}
    output, before = linear.node.outputs[0], weights.nbytes(linear.weight)
    linear.node.outputs.clear()
    linear.node.inputs.clear()
    spec = _LINEARS[config.bits]
    model.graph.nodes.append(spec.node(linear.name, [*quantized, *constants, bias], [output], **attributes))
    detail = {"N": n, "K": k, "bytes_before": before, "bytes_after": weight.nbytes, "weight_error": weight.error}
    return detail if weight.output_error is None else {**detail, "output_error": weight.output_error}
