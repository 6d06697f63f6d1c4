"""`graphopt explain`: which kernel a vector-quantized layer gets, and why."""

__all__ = ["explain"]

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from graphopt.cli.console import JsonFlag, emit, guard

if TYPE_CHECKING:
    from graphopt.explain.cost import Explanation, Switches
    from graphopt.explain.devices import Device
    from graphopt.explain.layers import CodedCache, VqLinear
    from graphopt.explain.planner import Planner

_SHARES = (0.5, 0.9, 0.99)


class Dtype(str, Enum):
    """T of the linears."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@guard
def explain(
    model: Annotated[Path, typer.Argument(help="An optimized .onnx file.")],
    layer: Annotated[str, typer.Option(help="Layers to explain, by name; a glob such as '*q_proj*'.")] = "*",
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens; repeat. Default: 1, 16, 2048.")] = None,
    device: Annotated[str, typer.Option(help="h100, h200, a100, l4, l40s, rtx4090 or rtx5090.")] = "h100",
    dtype: Annotated[Dtype | None, typer.Option(help="As if the model were of this type; default: its own.")] = None,
    cache: Annotated[
        bool, typer.Option(" /--no-cache", help="Leave entries of codebooks in memory.", show_default=False)
    ] = True,
    dataflow: Annotated[
        bool, typer.Option(" /--no-dataflow", help="Cut work by outputs, not by codebooks.", show_default=False)
    ] = True,
    fusion: Annotated[
        bool, typer.Option(" /--no-fusion", help="Pass weights on through shared memory.", show_default=False)
    ] = True,
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show which kernel each vector-quantized layer gets, from which numbers, and what optimizations are worth.

    Times are estimates, fitted to an H100. Needs the plugin library, but no GPU.

    Examples:

      graphopt explain model.opt.onnx

      graphopt explain model.opt.onnx --layer '*layers.0*' --tokens 1 --no-cache --no-dataflow --no-fusion

      graphopt explain model.opt.onnx --device a100 --json
    """
    from graphopt import compile, ir
    from graphopt.engine import nvrtc
    from graphopt.engine.plugins import locate
    from graphopt.errors import ModelError
    from graphopt.explain.cost import Switches
    from graphopt.explain.devices import device as device_of
    from graphopt.explain.layers import coded_caches, vq_linears
    from graphopt.explain.planner import Planner

    where = device_of(device)
    loaded = ir.load(model)
    compile.check(loaded)
    linears, caches = list(vq_linears(loaded, layer)), list(coded_caches(loaded, layer))
    if not linears and not caches:
        names = [view.name for view in vq_linears(loaded)] + [view.name for view in coded_caches(loaded)]
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ModelError(
                f"--layer '{layer}' matches none of the {len(names)} vector-quantized layers of {model} ({shown})"
            )
        raise ModelError(
            f"{model} has no vector-quantized layers; give a model that optimize wrote with a vq scheme, or with "
            "--kv-cache cq4 or cq2"
        )
    if dtype is not None:
        linears = [replace(view, dtype=dtype.value) for view in linears]
    nvrtc.offer()
    planner = Planner(locate(plugins)) if linears else None
    switches = Switches(cache, dataflow, fusion)
    rows = [_linear(view, tokens or [1, 16, 2048], where, planner, switches) for view in linears if planner is not None]
    data = {
        "device": {"name": device, **asdict(where)},
        "switches": asdict(switches),
        "linears": rows,
        "caches": [_cache(view) for view in caches],
    }
    emit(data, json, lambda out: _render(out, data))


def _linear(
    view: "VqLinear", tokens: list[int], device: "Device", planner: "Planner", switches: "Switches"
) -> dict[str, Any]:
    fmt, usage = view.format, view.usage
    return {
        "name": view.name,
        "n": view.n,
        "k": view.k,
        "dtype": view.dtype,
        "format": str(fmt),
        "tile": [fmt.tile_rows, fmt.tile_columns],
        "transform": view.transform,
        "readers": view.readers,
        "code_bytes": view.code_bytes,
        "codebooks": fmt.tiles(view.n, view.k),
        "codebook_bytes": fmt.book_bytes,
        "usage": {
            "codes_counted": usage.of,
            "entries": fmt.entries,
            "never_named": usage.unused,
            **{f"entries_for_{share:.0%}": usage.covering(share) for share in _SHARES},
        },
        "plans": [_plan(view, m, device, planner, switches) for m in tokens],
    }


def _plan(view: "VqLinear", m: int, device: "Device", planner: "Planner", switches: "Switches") -> dict[str, Any]:
    from graphopt.explain.cost import Switches, explain

    found: Explanation = explain(view, m, device, planner, switches)
    without = {
        "cache": Switches(cache=False),
        "dataflow": Switches(dataflow=False),
        "fusion": Switches(fusion=False),
        "all": Switches(cache=False, dataflow=False, fusion=False),
    }
    others = {name: explain(view, m, device, planner, s).us for name, s in without.items()}
    return {**asdict(found), "paper_fusion": found.paper_fusion, "us_without": others}


def _cache(view: "CodedCache") -> dict[str, Any]:
    return {
        **asdict(view),
        "format": f"VQ<{view.vector},8,1>",
        "token_bytes": view.token_bytes,
        "plain_token_bytes": view.plain_token_bytes,
        "codebook_bytes": view.book_bytes,
        "break_even": view.break_even,
    }


def _render(out: Console, data: dict[str, Any]) -> None:
    """Draw layers that differ in their names only, or in how often entries are named, as one."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in data["linears"]:
        kind = (row["n"], row["k"], row["format"], *row["tile"], row["dtype"], row["transform"], row["readers"])
        groups.setdefault(kind, []).append(row)
    for same in groups.values():
        _render_linear(out, same[0], len(same) - 1)
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in data["caches"]:
        alike.setdefault(tuple(value for key, value in row.items() if key != "name"), []).append(row)
    for same in alike.values():
        _render_cache(out, same[0], len(same) - 1)


def _render_cache(out: Console, row: dict[str, Any], more: int) -> None:
    like = f" and {more} like it" if more else ""
    out.print(
        f"[bold]{row['name']}[/bold]{like}: cache of {row['kv_heads']} heads of {row['head_size']}, {row['format']}\n"
        f"  {row['token_bytes']:,} bytes for each token instead of {row['plain_token_bytes']:,}; codebooks of "
        f"{row['codebook_bytes'] / 1024:,.0f} KB, made up for from {row['break_even']:,} tokens on",
        highlight=False,
        soft_wrap=True,
    )


def _render_linear(out: Console, row: dict[str, Any], more: int) -> None:
    usage, tile = row["usage"], " x ".join(map(str, row["tile"]))
    like = f" and {more} like it" if more else ""
    out.print(f"[bold]{row['name']}[/bold]{like}: {row['n']} x {row['k']}, {row['format']}", highlight=False)
    out.print(
        f"  {row['code_bytes'] / 1024:,.0f} KB of codes; codebooks of {row['codebook_bytes'] / 1024:,.1f} KB for each "
        f"{tile} weights, {row['codebooks']} of them\n"
        f"  of {usage['entries']} entries, {usage['entries_for_50%']} serve half of the look-ups, "
        f"{usage['entries_for_99%']} serve 99 %, {usage['never_named']} are never named",
        highlight=False,
        soft_wrap=True,
    )
    if row["transform"]:
        with_others = f", in one launch for {row['readers']} linears" if row["readers"] > 1 else ""
        out.print(f"  input from {row['transform']}{with_others}", highlight=False, soft_wrap=True)
    for plan in row["plans"]:
        _render_plan(out, plan)


def _render_plan(out: Console, plan: dict[str, Any]) -> None:
    tokens = "1 token" if plan["m"] == 1 else f"{plan['m']:,} tokens"
    if plan["us"] is None:
        lines = [f"{tokens}: {plan['kernel']} kernel: {plan['reason']}"]
        if plan["cache"]:
            lines.append(_shared(plan["cache"]))
        out.print("\n".join(f"  {line}" for line in lines), highlight=False, soft_wrap=True)
        return
    split = "" if plan["split"] == 1 else f", {plan['split']} blocks share K"
    others = [f"{name} {_us(us)}" for name, us in plan["candidates"].items() if name != plan["kernel"]]
    without = [f"{name} {_us(us)}" for name, us in plan["us_without"].items()]
    lines = [
        f"{tokens}: [bold]{plan['kernel']}[/bold]{split}: [bold]{_us(plan['us'])} us[/bold]; memory alone "
        f"{_us(plan['memory_us'])}; the paper's split would be {plan['paper_split']:.2g}",
        f"  instead: {', '.join(others) or 'no other kernel'}",
        f"  without: {', '.join(without)}",
    ]
    if cache := plan["cache"]:
        lines.insert(1, _shared(cache))
    out.print("\n".join(f"  {line}" for line in lines), highlight=False, soft_wrap=True)


def _shared(cache: dict[str, Any]) -> str:
    copies = "1 copy" if cache["copies"] == 1 else f"{cache['copies']} copies"
    return (
        f"  in shared memory: codes below {cache['n_shared']}, {cache['served']:.0%} of look-ups, "
        f"{cache['shared_bytes'] / 1024:.0f} KB with {copies}, {cache['left_bytes'] / 1024:.0f} KB for all else"
    )


def _us(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
