"""What is counted around the library's estimates. The library itself is stood in for."""

import re
from typing import Any

import numpy as np
import pytest

from graphopt.explain.cost import ALL_ON, Explanation, Switches, explain
from graphopt.explain.devices import DEVICES, Device
from graphopt.explain.layers import Format, Usage, VqLinear

H100 = DEVICES["h100"]


def layer(fmt: Format, n: int = 8192, k: int = 8192, dtype: str = "float16") -> VqLinear:
    return VqLinear("l", n, k, dtype, fmt, Usage(np.full(fmt.entries, 10), 10 * fmt.entries))


class Plans:
    """A planner with fixed estimates; without clusters, the kernel few8 takes twice as long."""

    def __init__(
        self, candidates: dict[str, float], split: int = 1, made: dict[str, Any] | None = None, preset: str = "vq-x"
    ) -> None:
        self.candidates, self.split, self.made, self.preset = candidates, split, made or {}, preset

    def generated(self, view: VqLinear, device: Device) -> tuple[dict[str, Any], str]:
        return self.made, ""

    def plan(self, view: VqLinear, m: int, device: Device, *, clusters: bool = True) -> dict[str, Any]:
        found = {k: us * (2 if k == "few8" and not clusters else 1) for k, us in self.candidates.items()}
        best = min(found, key=lambda name: found[name]) if found else "generic"
        fmt = view.format
        cache = {"entries": fmt.residuals * fmt.entries, "entry_bytes": fmt.entry_bytes, "copies": 8, "tables": 1}
        return {
            "kernel": best,
            "preset": self.preset,
            "split": self.split,
            "candidates": found,
            **cache,
            "shared_bytes": 65536,
            "panel_bytes": 8192,
            "most_generated": 64,
        }


def of(plans: Plans, view: VqLinear, m: int = 1, switches: Switches = ALL_ON) -> Explanation:
    return explain(view, m, H100, plans, switches)  # type: ignore[arg-type]


TILED, WHOLE = Format(4, 8, 1, 256, 256), Format(8, 8, 2, 8192, 8192)


def test_the_least_estimate_is_chosen_and_kept() -> None:
    found = of(Plans({"few8": 20.0, "tile64": 66.0}, split=2), layer(TILED))
    assert (found.kernel, found.us, found.split) == ("few8", 20.0, 2)
    assert found.candidates == {"few8": 20.0, "tile64": 66.0}
    assert found.cache["n_shared"] == 256
    assert found.cache["served"] == pytest.approx(1)
    assert found.cache["left_bytes"] == 227 * 1024 - 65536 - 2 * 8192
    assert found.traffic["codes"] == 8192 * 2048
    assert found.traffic["codebooks"] == 32 * 64 * 2048  # 32 tiles across, 64 blocks of 128 rows
    assert found.memory_us == pytest.approx((8192 * 2048 + 1024 * 2048 + 2 * 16384) / 3.35e6)
    # Codebook traffic over float32 sums, VQ-LLM's split factor.
    assert found.paper_split == pytest.approx(((32 * 64 * 2048) / (8192 * 4)) ** 0.5)


@pytest.mark.parametrize("kernel", ["few8", "rows8", "tile64"])
@pytest.mark.parametrize("m", [1, 16, 700])
def test_each_switch_costs_and_all_cost_most(kernel: str, m: int) -> None:
    plans, view = Plans({kernel: 30.0}), layer(WHOLE)
    full = of(plans, view, m).us
    alone = [
        of(plans, view, m, s).us for s in (Switches(cache=False), Switches(dataflow=False), Switches(fusion=False))
    ]
    together = of(plans, view, m, Switches(cache=False, dataflow=False, fusion=False)).us
    assert full == 30.0
    assert None not in alone
    assert all(us >= full for us in alone)
    assert alone[0] > full
    assert alone[2] > full
    assert (alone[1] > full) == (kernel != "tile64")  # for which there is no estimate without clusters
    assert together == pytest.approx(full + sum(us - full for us in alone), abs=0.05)


def test_an_expanded_weight_is_decoded_once_for_any_tokens() -> None:
    found = of(Plans({"expanded": 480.0, "tile256": 600.0}), layer(WHOLE), 2048)
    assert found.kernel == "expanded"
    assert found.traffic["codes"] == 8192 * 2048
    assert found.traffic["codebooks"] == 64 * 8192  # of 64 blocks, each of which has the whole codebooks
    off = of(Plans({"expanded": 480.0}), layer(WHOLE), 2048, Switches(cache=False, fusion=False))
    assert off.us == pytest.approx(of(Plans({"expanded": 480.0}), layer(WHOLE), 1, Switches(cache=False)).us)


@pytest.mark.parametrize(("m", "kernel"), [(64, "generated16"), (65, "expanded")])
def test_generated_kernels_are_taken_up_to_as_many_tokens_as_the_plan_says(m: int, kernel: str) -> None:
    made = {"tokens": 16, "registers": [90, 100], "spilled_bytes": [0, 0], "groups": 2, "n_shared": 64}
    made |= {"copies": 32, "tables": 1, "shared_bytes": 8192, "panel_bytes": 32768}
    plans = Plans({"expanded": 120.0}, made=made, preset="none")
    assert of(plans, layer(Format(2, 6, 1, 8192, 8192)), m).kernel == kernel


def test_cache_off_counts_lines() -> None:
    """16 lines of 128 bytes hold 256 entries of 8 bytes; 32 even look-ups touch 14 of them, and 2 would do."""
    added = of(Plans({"few8": 20.0}), layer(TILED), switches=Switches(cache=False)).us - 20.0
    lines = 16 * (1 - (15 / 16) ** 32)
    assert added == pytest.approx(8192 * 2048 / 32 * (lines - 2) / (132 * 1755), rel=1e-3)


def test_hot_entries_make_the_cache_worth_less() -> None:
    even, hot = layer(TILED), layer(TILED)
    hot.usage.counts[:16] = 10**6
    added = [of(Plans({"few8": 20.0}), v, switches=Switches(cache=False)).us for v in (even, hot)]
    assert added[1] < added[0]


@pytest.mark.parametrize("switches", [Switches(cache=False), Switches(dataflow=False)])
def test_products_are_no_alternative_without_cache_or_dataflow(switches: Switches) -> None:
    plans = Plans({"rows8": 16.0, "table": 10.0})
    assert of(plans, layer(WHOLE)).kernel == "table"
    changed = of(plans, layer(WHOLE), switches=switches)
    assert changed.kernel == "rows8"
    assert "table" not in changed.candidates


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (layer(TILED, dtype="float32"), "x is float32"),
        (layer(Format(2, 6, 1, 256, 256), k=8200), r"no other kernel is compiled for VQ<2,6,1>.*8200"),
    ],
)
def test_the_generic_kernel_has_a_reason_and_no_estimate(view: VqLinear, reason: str) -> None:
    found = of(Plans({}), view, m=16)
    assert (found.kernel, found.us, found.candidates) == ("generic", None, {})
    assert re.search(reason, found.reason)
    assert found.traffic["codes"] == 2 * view.code_bytes  # eight tokens at a time


@pytest.mark.parametrize(("m", "kernel", "registers"), [(1, "generated8", 90), (9, "generated16", 104)])
def test_a_generated_kernel_has_its_registers_and_cache(m: int, kernel: str, registers: int) -> None:
    made = {"tokens": 16, "registers": [90, 104], "spilled_bytes": [0, 0], "groups": 2, "n_shared": 48, "copies": 4}
    plans = Plans({}, made=made | {"tables": 1, "shared_bytes": 65536, "panel_bytes": 8192})
    view = layer(Format(2, 6, 1, 8192, 8192))
    found = of(plans, view, m=m)
    assert (found.kernel, found.us) == (kernel, None)
    assert f"made for VQ<2,6,1> when an engine is built: {registers} registers, 0 bytes spilled" in found.reason
    assert (found.cache["n_shared"], found.cache["copies"], found.cache["served"]) == (48, 4, 0.75)
    assert found.cache["left_bytes"] == 227 * 1024 - 65536 - 2 * 8192
    assert of(plans, view, m=m, switches=Switches(cache=False)).cache == {}
    assert of(plans, layer(view.format, dtype="float32")).kernel == "generic"


def test_shuffles_by_the_papers_rule() -> None:
    assert of(Plans({"few8": 1.0}), layer(Format(8, 8, 2, 8192, 8192))).paper_fusion == "registers"
    assert of(Plans({"few8": 1.0}), layer(Format(16, 8, 2, 8192, 8192))).paper_fusion == "shared memory"


def test_switches_say_what_is_off() -> None:
    assert str(ALL_ON) == "all on"
    assert str(Switches(cache=False, fusion=False)) == "without cache, fusion"
