"""Canonical linears -> vector-quantized ones.

    Linear(x, W)  =>  VQLinear(x, codes, codebooks, scale, bias)
    Linear(x, W)  =>  VQLinearE8(VQHadamard(x, signs), codes, ratios, scale, bias)

Linears that read the same tensor share its transform, which is one launch with what makes the tensor, where it can be:

    RMSNorm(Add(x, r)) -> y;  VQHadamard(y, signs)  =>  VQAddRMSNormHadamard(x, r, gamma, signs) -> z, sum, y
"""

__all__ = ["SCHEME", "VQ"]

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel

from graphopt.core.canonical import LinearView, assigned, bias_of
from graphopt.core.fusion import take_producer
from graphopt.core.jobs import count
from graphopt.core.processes import Mapped, in_processes
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics, require_second_moment
from graphopt.ir import weights
from graphopt.ir.model import Model
from graphopt.passes.vq import e8, hadamard, ops
from graphopt.passes.vq.archive import check_archive, ready_weight
from graphopt.passes.vq.config import PRESETS, VQConfig
from graphopt.passes.vq.hadamard_ops import FUSED, HADAMARD
from graphopt.passes.vq.moments import ChannelMoment, Moment, VectorMoment
from graphopt.passes.vq.weight import QuantizedWeight, quantize_weight

STAGE = "lower-vq"
#: Weights that are quantized in the time that a process takes to start.
_WORTH = 1 << 22


class VQ:
    """The scheme of "VQ-LLM: High-performance Code Generation for Vector Quantization Augmented LLM Inference"."""

    name = "vq"
    config: type[BaseModel] = VQConfig
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
        jobs = _jobs(assigned(model, assignment, report, stage=STAGE, scheme=self.name), statistics)
        if dry_run:
            for job in jobs:
                report.rewritten(STAGE, self.name, job.linear.name, job.reason)
            return
        inputs = _Inputs(model)
        read = [inputs.tensor(job) for job in jobs]
        details = []
        report.begin(STAGE, len(jobs))
        with in_processes(map(inputs.task, jobs), _processes(jobs)) as made:
            for job, x in zip(jobs, read, strict=True):
                report.step(job.linear.name)
                details.append(_replace(model, job.linear, x, next(made)))
        sources = inputs.fuse()
        for job, x, detail in zip(jobs, read, details, strict=True):
            source = f", input from {sources[id(x)]}" if id(x) in sources else ""
            report.rewritten(STAGE, self.name, job.linear.name, job.reason + source, **detail)
        model.tidy()


SCHEME = VQ()


@dataclass(frozen=True)
class _Job:
    """A linear to be lowered; ``ready`` says whether the archive of its settings has its codes."""

    linear: LinearView
    config: VQConfig
    entry: LinearStatistics | None
    ready: bool

    @property
    def reason(self) -> str:
        """What the report says of it."""
        if self.ready:
            return f"{ops.LINEAR.name} with the codes of {Path(str(self.config.codes)).name}"
        return _described(self.config, self.entry)

    @property
    def transformed(self) -> bool:
        """Whether its input goes through a Hadamard transform."""
        return self.config.codebook == "e8" and not self.ready


def _jobs(linears: Sequence[tuple[LinearView, VQConfig]], statistics: Statistics | None) -> list[_Job]:
    ready = {
        archive: check_archive(Path(archive), [linear.name for linear, config in linears if config.codes == archive])
        for archive in sorted({config.codes for _, config in linears if config.codes})
    }
    jobs = []
    for linear, config in linears:
        found = config.codes is not None and linear.name in ready[config.codes]
        jobs.append(_Job(linear, config, None if found else _entry(linear, config, statistics), found))
    return jobs


def _processes(jobs: Sequence[_Job]) -> int:
    """Return how many processes to work with; starting one takes about as long as quantizing `_WORTH` weights."""
    size = sum(job.linear.shape[0] * job.linear.shape[1] for job in jobs if not job.ready)
    return min(count(), len(jobs), size // _WORTH)


def _entry(linear: LinearView, config: VQConfig, statistics: Statistics | None) -> LinearStatistics | None:
    entry = None if statistics is None else statistics.of(linear.name, linear.shape[1])
    if config.rounding == "gptq":
        require_second_moment(entry, "rounding 'gptq'", linear.name)
    return entry


def _second_order(config: VQConfig, entry: LinearStatistics | None) -> bool:
    return config.rounding != "nearest" and entry is not None and entry.second_moment is not None


def _described(config: VQConfig, entry: LinearStatistics | None) -> str:
    """The op that a linear becomes, and how its weight is coded."""
    kind = f"VQ<{config.vector},{config.bits},{config.residuals}>"
    how = "gptq" if _second_order(config, entry) else "nearest"
    if config.codebook == "e8":
        return f"{ops.LINEAR_E8.name} {kind}, {how}"
    scope = f"tiles of {config.tile}" if config.tile else "whole weight"
    return f"{ops.LINEAR.name} {kind}, {scope}, {how}"


def _generator(config: VQConfig, name: str) -> np.random.Generator:
    """Return a generator that depends on nothing but the seed and a name."""
    return np.random.default_rng([config.seed, zlib.crc32(name.encode())])


def _quantized(
    linear: LinearView, config: VQConfig, moment: Mapped[Moment], signs: np.ndarray | None
) -> QuantizedWeight:
    return quantize_weight(linear, config, moment.value, signs, _generator(config, linear.name))


class _Inputs:
    """Transforms and second moments of the tensors that linears read.

    The last second moment is kept: linears that read one tensor come one after the other.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._transformed: dict[tuple[int, int], tuple[gs.Tensor, np.ndarray]] = {}
        self._last: tuple[Any, Mapped[Moment]] | None = None

    def tensor(self, job: _Job) -> gs.Tensor:
        """Return the tensor that the lowered linear reads."""
        return self._transform(job.linear, job.config)[0] if job.transformed else job.linear.x

    def task(self, job: _Job) -> tuple[str, Callable[[], QuantizedWeight]]:
        """Return the linear's name and what quantizes its weight, here or in another process."""
        linear, config, entry = job.linear, job.config, job.entry
        if job.ready:
            return linear.name, partial(ready_weight, linear, Path(str(config.codes)))
        signs = self._transform(linear, config)[1] if job.transformed else None
        key = id(linear.x), config.vector, config.damping, config.codebook, config.seed, _second_order(config, entry)
        if self._last is None or self._last[0] != key:
            self._last = key, Mapped(_moment(linear.shape[1], config, entry, signs))
        return linear.name, partial(_quantized, linear, config, self._last[1], signs)

    def _transform(self, linear: LinearView, config: VQConfig) -> tuple[gs.Tensor, np.ndarray]:
        key = id(linear.x), config.seed
        if key not in self._transformed:
            channels, source = linear.shape[1], linear.x
            signs = hadamard.random_signs(channels, _generator(config, source.name))
            stem = self._model.unique_name(f"{source.name}_hadamard")
            dtype = weights.onnx_dtype(linear.weight.dtype)
            made = gs.Variable(f"{stem}_z", dtype, [*source.shape[:-1], len(signs)] if source.shape else None)
            constant = self._model.store.put(f"{stem}_signs", signs)
            node = HADAMARD.node(stem, [source, constant], [made], block=hadamard.block_of(channels))
            self._model.graph.nodes.append(node)
            self._transformed[key] = made, signs
        return self._transformed[key]

    def fuse(self) -> dict[int, str]:
        """Make one op of each transform and what makes its input; afterwards, when no linear of ours reads that.

        Returns:
            The name of the op that makes each transformed tensor, by id.
        """
        for made, _ in self._transformed.values():
            node = made.inputs[0]
            x, signs = node.inputs
            fusion = take_producer(self._model, x, [node], partial(_unread, node))
            if fusion is not None:
                node.inputs.clear()
                node.outputs.clear()
                inputs, outputs = [*fusion.inputs, signs], [made, *fusion.outputs]
                attributes = {"block": node.attrs["block"], **fusion.attributes}
                self._model.graph.nodes.append(FUSED[fusion.name].node(node.name, inputs, outputs, **attributes))
        return {id(made): made.inputs[0].op for made, _ in self._transformed.values()}


def _unread(node: gs.Node, suffix: str) -> gs.Variable:
    """An output like the input of a transform."""
    x, z = node.inputs[0], node.outputs[0]
    return gs.Variable(f"{node.name}_{suffix}", z.dtype, None if x.shape is None else list(x.shape))


def _moment(channels: int, config: VQConfig, entry: LinearStatistics | None, signs: np.ndarray | None) -> Moment:
    if _second_order(config, entry):
        assert entry is not None and entry.second_moment is not None
        moment = np.asarray(entry.second_moment)
        if signs is not None:
            block = hadamard.block_of(channels)
            moment = hadamard.transform(hadamard.transform(moment, signs, block).T, signs, block)
        return VectorMoment(moment, config.vector, config.damping)
    if entry is None or signs is not None:
        # The transform makes channels alike.
        return ChannelMoment(np.ones(channels if signs is None else len(signs)), config.vector, config.damping)
    return ChannelMoment(entry.mean_square, config.vector, config.damping)


def _replace(model: Model, linear: LinearView, x: gs.Tensor, weight: QuantizedWeight) -> dict[str, Any]:
    """Swap a canonical linear for a vector-quantized one; return sizes and normalized errors for the report."""
    n, k = linear.shape
    base, store, bias = linear.weight.name, model.store, bias_of(model, linear)
    arrays = {"codes": weight.codes}
    if weight.codebooks is None:
        spec, attributes = ops.LINEAR_E8, {}
        arrays["ratios"] = np.array(e8.RATIOS[: weight.residuals], np.float32)
    else:
        spec = ops.LINEAR
        arrays["codebooks"] = weight.codebooks
        attributes = {"bits": weight.bits, "tile_rows": weight.tile_rows, "tile_columns": weight.tile_columns}
    arrays["scale"] = weight.scale
    constants = [store.put(model.unique_name(f"{base}_{s}"), a) for s, a in arrays.items()]
    output, before = linear.node.outputs[0], weights.nbytes(linear.weight)
    linear.node.outputs.clear()
    linear.node.inputs.clear()
    model.graph.nodes.append(spec.node(linear.name, [x, *constants, bias], [output], **attributes))
    return {
        "N": n,
        "K": k,
        "bytes_before": before,
        "bytes_after": weight.nbytes,
        "weight_error": weight.error,
        "output_error": weight.output_error,
    }
