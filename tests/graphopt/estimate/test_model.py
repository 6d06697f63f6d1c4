"""Whole estimates: conservation, scaling, and the numbers that docs/estimate.md states beside the published ones."""

import itertools
import re
import statistics
from pathlib import Path
from typing import Literal

import pytest

from graphopt.cli.estimate import preset_workload
from graphopt.errors import ModelError
from graphopt.estimate.model import estimate
from graphopt.estimate.parameters import Parameters
from graphopt.estimate.workload import Workload

DOCS = Path(__file__).parents[3] / "docs"
PARAMETERS = Parameters.load()
#: Mean speed-up and energy reduction over the accelerators that M-ANT (HPCA'25) compares with.
PUBLISHED = (2.99, 2.81)
MODELS = ("llama-2-7b", "llama-2-13b", "opt-6.7b", "opt-13b")
TINY = Workload.of_decoder(hidden=256, layers=2, heads=8, kv_heads=2, head_dim=32, ffn=512, vocabulary=1000, gated=True)


def test_macs_are_those_of_the_shapes() -> None:
    found = estimate(TINY, PARAMETERS, batch=3, seq=64, context=100)
    weights = sum(x.n * x.k for x in TINY.linears)
    for array in PARAMETERS.arrays:
        prefill, decode = (found.of(array, phase) for phase in ("prefill", "decode"))
        assert prefill.linears.macs == 3 * 64 * weights
        assert decode.linears.macs == 3 * weights
        assert prefill.attention.macs == 3 * 2 * 8 * 64 * 64 * (32 + 32)
        assert decode.attention.macs == 3 * 2 * 8 * 100 * (32 + 32)


def test_time_is_never_less_than_computing_or_moving() -> None:
    for phase in estimate(TINY, PARAMETERS, seq=64, context=64).phases:
        assert phase.total.cycles >= phase.total.compute
        assert phase.total.cycles >= phase.total.dram.total / PARAMETERS.dram.width.value
        assert phase.joules == pytest.approx(sum(phase.energy.values()))
        assert all(part >= 0 for part in phase.energy.values())


def test_only_real_time_quantization_costs_a_quantizer() -> None:
    found = estimate(TINY, PARAMETERS, seq=64)
    assert {p.array for p in found.phases if p.energy["quantizer"] > 0} == {"mant"}
    elements = 2 * 2 * 64 * (32 + 32)  # layers, heads, tokens, channels of K and V
    assert found.of("mant", "prefill").energy["quantizer"] == pytest.approx(
        elements * PARAMETERS.quantizer.energy.value * 1e-12
    )


def test_the_cache_dominates_long_contexts() -> None:
    """Per token in the cache, 16 bits of the rivals against 4.3125 of M-ANT."""
    near, far = (estimate(TINY, PARAMETERS, context=c) for c in (10_000, 20_000))
    grown = {
        a: far.of(a, "decode").attention.dram.cache - near.of(a, "decode").attention.dram.cache for a in ("ant", "mant")
    }
    assert grown["ant"] / grown["mant"] == pytest.approx(16 / 4.3125)


def test_speed_up_over_itself_is_one() -> None:
    found = estimate(TINY, PARAMETERS, seq=64)
    assert found.speedup("mant", "decode") == found.energy_reduction("mant", "decode") == 1


@pytest.mark.parametrize("size", ["batch", "seq", "context"])
def test_sizes_below_one_are_refused(size: str) -> None:
    with pytest.raises(ModelError, match=f"{size} must be at least 1, not 0"):
        estimate(TINY, PARAMETERS, **{size: 0})  # type: ignore[arg-type]


def means(
    parameters: Parameters, equal: Literal["area", "pes"], tokens: int, batch: int, phase: str
) -> tuple[float, float]:
    """Geometric means over models, ANT and OliVe of M-ANT's speed-up and energy reduction."""
    runs = [
        estimate(preset_workload(m), parameters, batch=batch, seq=tokens, context=tokens, equal=equal) for m in MODELS
    ]
    rivals = list(itertools.product(runs, ("ant", "olive")))
    return (
        statistics.geometric_mean(run.speedup(rival, phase) for run, rival in rivals),
        statistics.geometric_mean(run.energy_reduction(rival, phase) for run, rival in rivals),
    )


def stated() -> list[list[str]]:
    """Rows of the page's table of means: equal what, bits, phase, tokens, batch, speed-up, energy."""
    rows = re.findall(r"^\| (area|PEs) \|(.+)\|$", (DOCS / "estimate.md").read_text(), re.MULTILINE)
    return [[equal, *(cell.strip() for cell in rest.split("|"))] for equal, rest in rows]


def test_the_page_has_all_settings() -> None:
    assert {tuple(row[:5]) for row in stated()} == set(
        itertools.product(("area", "PEs"), ("mixed", "8"), ("prefill", "decode"), ("2048", "8192"), ("1", "16"))
    ) - set(itertools.product(("area", "PEs"), ("mixed", "8"), ("prefill",), ("2048", "8192"), ("16",)))


@pytest.mark.parametrize("row", stated(), ids=lambda row: "-".join(row[:5]))
def test_the_page_states_what_comes_out(row: list[str]) -> None:
    """Means as computed today; those within 20 % of the published ones are bold, and no others are."""
    equal, bits, phase, tokens, batch, *cells = row
    parameters = PARAMETERS if bits == "mixed" else Parameters.load(DOCS / "estimate_8bit.yaml")
    found = means(parameters, "area" if equal == "area" else "pes", int(tokens), int(batch), phase)
    wanted = [
        f"**{mean:.2f}**" if abs(mean / published - 1) <= 0.2 else f"{mean:.2f}"
        for mean, published in zip(found, PUBLISHED, strict=True)
    ]
    assert cells == wanted
