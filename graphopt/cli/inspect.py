"""`graphopt inspect`."""

__all__ = ["inspect"]

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli.console import JsonFlag, emit, guard
from graphopt.cli.tables import linear_rows, size_table

#: Input of a lowered linear that holds its codes, behind the quantized activations, their scales and outliers.
_QUANTIZED_WEIGHT = 3


@guard
def inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx file, or a .plan with its manifest beside it.")],
    ops: Annotated[bool, typer.Option("--ops", help="Count nodes by operator as they are in the file.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Print the IR text instead.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what is in a model: inputs, outputs, sizes, and its linears by the names that recipes match.

    Examples:

      graphopt inspect model.onnx

      graphopt inspect model.opt.onnx --ops

      graphopt inspect model.plan
    """
    from graphopt import compile, ir
    from graphopt.cli.plan import plan_report
    from graphopt.core.canonical import LINEAR_OPS
    from graphopt.core.op import DOMAIN
    from graphopt.engine.inspect import inspect_plan
    from graphopt.ir import text as ir_text

    if model.suffix == ".plan":
        plan = inspect_plan(model)
        emit(plan.to_dict(), json, lambda out: plan_report(out, plan))
        return
    loaded = ir.load(model)
    compile.check(loaded)
    if text:
        emit(
            {"text": ir_text.dump(loaded)},
            json,
            lambda out: out.print(ir_text.dump(loaded), markup=False, soft_wrap=True),
        )
        return
    counts = Counter(f"{n.domain}.{n.op}" if n.domain else n.op for n in loaded.graph.nodes)
    sizes = size_table(loaded)
    io = {"inputs": [_tensor(t) for t in loaded.graph.inputs], "outputs": [_tensor(t) for t in loaded.graph.outputs]}
    if not any(n.domain == DOMAIN for n in loaded.graph.nodes):
        compile.canonicalize(loaded)
    rows = [
        {"name": n.name, "op": n.op, "weight": n.inputs[1 if n.op in LINEAR_OPS else _QUANTIZED_WEIGHT].name}
        for n in linear_rows(loaded)
    ]
    data: dict[str, Any] = {"opset": loaded.opset, **sizes, **io, "ops": dict(counts.most_common()), "linears": rows}
    emit(data, json, lambda out: _render(out, data, show_ops=ops))


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": str(tensor.dtype), "shape": list(tensor.shape or [])}


def _render(out: Console, data: dict[str, Any], *, show_ops: bool) -> None:
    out.print(
        f"opset {data['opset']}, {data['nodes']:,} nodes ({data['plugin_nodes']} for plugins), "
        f"{data['weight_bytes'] / 1e6:,.1f} MB of weights"
    )
    for kind in ("inputs", "outputs"):
        table = Table(kind, "type", "shape")
        for t in data[kind]:
            table.add_row(t["name"], t["dtype"], " x ".join(map(str, t["shape"])))
        out.print(table)
    if show_ops:
        table = Table("operator", "nodes")
        for op, count in data["ops"].items():
            table.add_row(op, str(count))
        out.print(table)
    else:
        table = Table("linear", "op", title="linears, by the names that recipes and statistics use")
        for row in data["linears"]:
            table.add_row(row["name"], row["op"])
        out.print(table)
