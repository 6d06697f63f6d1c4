"""Time, traffic and energy of a workload on every array, phase by phase."""

__all__ = ["Cost", "Estimate", "PhaseCost", "estimate"]

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from graphopt.errors import ModelError
from graphopt.estimate.array import Geometry, Product, cycles, geometry
from graphopt.estimate.memory import Traffic, attention_traffic, buffer_energy, linear_traffic
from graphopt.estimate.parameters import Array, Parameters
from graphopt.estimate.workload import Attention, Workload

#: The array whose advantage is asked for.
OURS = "mant"
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Cost:
    """What some products cost.

    Attributes:
        cycles: the greater of computing and of moving data, summed over products.
        compute: cycles of the array alone.
        macs: multiply-accumulates.
        dram: bits to and from DRAM.
        pes, buffers, quantizer: energy, pJ, without leakage.
    """

    cycles: float = 0.0
    compute: float = 0.0
    macs: int = 0
    dram: Traffic = field(default_factory=Traffic)
    pes: float = 0.0
    buffers: float = 0.0
    quantizer: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.cycles + other.cycles,
            self.compute + other.compute,
            self.macs + other.macs,
            self.dram + other.dram,
            self.pes + other.pes,
            self.buffers + other.buffers,
            self.quantizer + other.quantizer,
        )


@dataclass(frozen=True)
class PhaseCost:
    """One phase on one array: its linears and its attention, and whether computing or moving data takes longer."""

    array: str
    phase: str
    pes: int
    linears: Cost
    attention: Cost
    bound: Literal["compute", "memory"]
    seconds: float
    energy: dict[str, float]  # joules by part: pes, buffers, dram, quantizer, static

    @property
    def total(self) -> Cost:
        """Linears and attention."""
        return self.linears + self.attention

    @property
    def joules(self) -> float:
        """All parts."""
        return sum(self.energy.values())


@dataclass(frozen=True)
class Estimate:
    """All phases on all arrays."""

    phases: tuple[PhaseCost, ...]

    def of(self, array: str, phase: str) -> PhaseCost:
        """Return one of them."""
        return next(p for p in self.phases if (p.array, p.phase) == (array, phase))

    def speedup(self, over: str, phase: str) -> float:
        """Return how many times faster M-ANT is than the array ``over``."""
        return self.of(over, phase).seconds / self.of(OURS, phase).seconds

    def energy_reduction(self, over: str, phase: str) -> float:
        """Return how many times less energy M-ANT needs than the array ``over``."""
        return self.of(over, phase).joules / self.of(OURS, phase).joules

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON; times in seconds, energies in joules, traffic in bits."""
        return {
            "phases": [
                {
                    **asdict(p),
                    "joules": p.joules,
                    "mant_speedup": self.speedup(p.array, p.phase),
                    "mant_energy_reduction": self.energy_reduction(p.array, p.phase),
                }
                for p in self.phases
            ]
        }


def estimate(
    workload: Workload,
    parameters: Parameters,
    *,
    batch: int = 1,
    seq: int = 2048,
    context: int = 2048,
    equal: Literal["area", "pes"] = "area",
) -> Estimate:
    """Return what the workload costs on every array.

    Args:
        workload: linears and attention.
        parameters: of arrays, memories and energies.
        batch: sequences.
        seq: tokens of each prompt, in the prefill phase.
        context: tokens in the cache of each sequence, in the decode phase (one step of one token).
        equal: all arrays have the 'area' or the number of 'pes' of M-ANT's.

    Raises:
        ModelError: a size is not positive.
        RecipeError: the parameters do not allow it.
    """
    for name, value in (("batch", batch), ("seq", seq), ("context", context)):
        if value < 1:
            raise ModelError(f"{name} must be at least 1, not {value}")
    found = []
    for name, array in parameters.arrays.items():
        machine = _Machine(parameters, array, geometry(parameters, array, equal))
        for phase, tokens, cached in (("prefill", seq, seq), ("decode", 1, context)):
            linears = machine.linears(workload, batch * tokens)
            attention = machine.attention(workload, batch, tokens, cached)
            found.append(machine.phase(name, phase, linears, attention))
    return Estimate(tuple(found))


@dataclass(frozen=True)
class _Machine:
    parameters: Parameters
    array: Array
    shape: Geometry

    def linears(self, workload: Workload, tokens: int) -> Cost:
        kinds: Counter[tuple[int, int, int, int]] = Counter()
        for linear in workload.linears:
            bits = self.array.bits(linear.name)
            kinds[linear.n, linear.k, bits.weight, bits.activation] += 1
        total = Cost()
        for (n, k, weight, activation), count in kinds.items():
            product = Product(tokens, n, k, weight, activation, count)
            stored = self._stored(weight)
            total += self._cost([product], stored, linear_traffic(self.parameters, product, stored))
        return total

    def attention(self, workload: Workload, batch: int, tokens: int, cached: int) -> Cost:
        total = Cost()
        for layer, count in Counter(_anonymous(a) for a in workload.attention).items():
            total += self._attention(layer, batch * count, tokens, cached)
        return total

    def _attention(self, layer: Attention, sequences: int, tokens: int, cached: int) -> Cost:
        """Cost of ``sequences`` times a layer: both products of every key-value head, and the new K and V."""
        bits, shared = self.array.attention, layer.heads // layer.kv_heads
        stored, count = self._stored(bits.cache), sequences * layer.kv_heads
        rows = tokens * shared
        scores = Product(rows, cached, layer.key_size, bits.cache, bits.activation, count)
        values = Product(rows, layer.value_size, cached, bits.cache, bits.activation, count)
        one = attention_traffic(
            self.parameters,
            queries=tokens,
            keys=cached,
            heads=shared,
            key_size=layer.key_size,
            value_size=layer.value_size,
            activation=bits.activation,
            cache=stored,
        )
        new_k, new_v = (tokens * size * count for size in (layer.key_size, layer.value_size))
        appended = (new_k + new_v) * stored
        if self.array.grouped:
            # V waits as INT8 until its group of tokens is full: written, and read again.
            appended += 2 * new_v * self.parameters.quantizer.window.value
        dram = Traffic(0.0, one.activations * count, one.outputs * count, one.cache * count + appended)
        cost = self._cost([scores, values], stored, dram)
        quantizer = (new_k + new_v) * self.parameters.quantizer.energy.value if self.array.grouped else 0.0
        return cost + Cost(quantizer=quantizer)

    def _cost(self, products: list[Product], stored: float, dram: Traffic) -> Cost:
        """Cost of products between which nothing leaves the chip; ``stored`` bits per stationary element."""
        compute = sum(cycles(self.shape, p) for p in products)
        active = self.parameters.pes[self.array.pe].dynamic.value / self.parameters.clock.value  # pJ per PE and cycle
        filled = [dram, *([Traffic()] * (len(products) - 1))]
        return Cost(
            cycles=max(compute, dram.total / self.parameters.dram.width.value),
            compute=compute,
            macs=sum(p.macs for p in products),
            dram=dram,
            pes=compute * self.shape.pes * active,
            buffers=sum(
                buffer_energy(self.parameters, self.shape, p, stored, f) for p, f in zip(products, filled, strict=True)
            ),
        )

    def phase(self, name: str, phase: str, linears: Cost, attention: Cost) -> PhaseCost:
        total, p = linears + attention, self.parameters
        seconds = total.cycles / (p.clock.value * 1e6)
        leakage = self.shape.pes * p.pes[self.array.pe].static.value * 1e-6
        leakage += (p.buffers.static + p.dram.static.value) * 1e-3
        energy = {
            "pes": total.pes * 1e-12,
            "buffers": total.buffers * 1e-12,
            "dram": total.dram.total * p.dram.energy.value * 1e-12,
            "quantizer": total.quantizer * 1e-12,
            "static": leakage * seconds,
        }
        bound: Literal["compute", "memory"] = "compute"
        if total.dram.total / p.dram.width.value > total.compute:
            bound = "memory"
        return PhaseCost(name, phase, self.shape.pes, linears, attention, bound, seconds, energy)

    def _stored(self, bits: int) -> float:
        return self.parameters.stored_bits(bits, grouped=self.array.grouped)


def _anonymous(layer: Attention) -> Attention:
    """Return the layer without its name, so that equal ones are counted together."""
    return Attention("", layer.heads, layer.kv_heads, layer.key_size, layer.value_size)
