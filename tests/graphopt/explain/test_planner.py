"""Plans of the real library, where it is built."""

from pathlib import Path

import numpy as np
import pytest

from graphopt.engine import nvrtc
from graphopt.errors import PluginError
from graphopt.explain.devices import DEVICES, Device
from graphopt.explain.layers import Format, Usage, VqLinear
from graphopt.explain.planner import Planner


@pytest.fixture(scope="module")
def planner(plugin_library: Path) -> Planner:
    return Planner(plugin_library)


def layer(fmt: Format, n: int, k: int) -> VqLinear:
    return VqLinear("l", n, k, "float16", fmt, Usage(np.ones(fmt.entries, int), fmt.entries))


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("m", [1, 16, 2048])
@pytest.mark.parametrize(
    "fmt",
    [
        Format(4, 8, 1, 256, 256),
        Format(8, 8, 2, 4096, 4096),
        Format(8, 12, 2, 4096, 4096),
        Format(8, 16, 2, 4096, 4096, lattice=True),
    ],
    ids=str,
)
def test_presets_have_estimates_where_their_codebooks_fit(
    planner: Planner, fmt: Format, m: int, device: Device
) -> None:
    plan = planner.plan(layer(fmt, 4096, 4096), m, device)
    if not plan["candidates"]:
        assert plan["kernel"] == "generic"
        assert device.shared_bytes < 2 * fmt.book_bytes + 2**17  # copies of entries, and X
        return
    assert plan["kernel"] in plan["candidates"]
    assert plan["us"] == min(plan["candidates"].values()) > 0
    assert plan["split"] >= 1
    assert plan["shared_bytes"] == plan["entries"] * plan["entry_bytes"] * plan["copies"] * plan["tables"]
    assert plan["shared_bytes"] + 2 * plan["panel_bytes"] <= device.shared_bytes


def test_blocks_share_k_on_hopper_only_and_gain_by_it(planner: Planner) -> None:
    view = layer(Format(4, 8, 1, 256, 256), 8192, 8192)
    together, alone = (planner.plan(view, 4, DEVICES["h100"], clusters=c) for c in (True, False))
    assert together["split"] > alone["split"] == 1
    assert together["us"] < alone["us"]


def test_other_formats_get_a_generated_kernel_where_blocks_fit_tiles(
    planner: Planner, libnvrtc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    monkeypatch.setenv(nvrtc.ENVIRONMENT, str(libnvrtc))
    view = layer(Format(2, 4, 1, 512, 512), 512, 512)
    plan = planner.plan(view, 1, DEVICES["h100"])
    assert (plan["kernel"], plan["candidates"]) == ("generic", {})
    numbers, problem = planner.generated(view, DEVICES["h100"])
    assert problem == ""
    assert (numbers["compute_capability"], numbers["n_shared"], numbers["spilled_bytes"]) == (90, 16, [0, 0])
    odd = layer(Format(2, 4, 1, 96, 512), 512, 512)
    assert planner.generated(odd, DEVICES["h100"]) == ({}, "")


def test_not_a_library(tmp_path: Path) -> None:
    text = tmp_path / "libgraphopt_plugins.so"
    text.write_text("no library")
    with pytest.raises(PluginError, match=r"libgraphopt_plugins\.so is no plugin library that can be asked for plans"):
        Planner(text)
