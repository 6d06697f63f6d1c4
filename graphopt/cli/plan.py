"""How verbs draw a plan."""

__all__ = ["plan_report", "plan_table"]

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphopt.engine.inspect import PlanReport
from graphopt.engine.manifest import Manifest, Tensor

_MAX_ROWS = 8


def plan_table(out: Console, manifest: Manifest) -> None:
    """Draw what a plan is made of: TensorRT, plugins, layers, inputs, outputs, profiles."""
    facts = Table(show_header=False)
    flavour = "TensorRT-RTX" if manifest.flavour == "rtx" else "TensorRT"
    facts.add_row("built by", f"{flavour} {manifest.tensorrt}, graphopt {manifest.graphopt}")
    facts.add_row("runs on compute capability", ", ".join(manifest.targets))
    facts.add_row("size", f"{manifest.plan_bytes / 1e6:,.1f} MB")
    facts.add_row("plugin layers", f"{manifest.plugin_layers:,} for {sum(manifest.custom_ops.values()):,} custom nodes")
    if manifest.plugins is not None:
        facts.add_row("plugin library", f"{manifest.plugins.path} ({manifest.plugins.version or 'unknown version'})")
    facts.add_row("network layers", f"{sum(manifest.layers.values()):,}")
    facts.add_row("build", f"{manifest.build_seconds:.1f} s, {manifest.peak_host_bytes / 1e9:.1f} GB of host memory")
    out.print(facts)
    tensors = Table("", "tensor", "dtype", *(f"{p.name}: min, opt, max" for p in manifest.profiles))
    _add_tensors(tensors, "in", manifest.inputs, manifest)
    _add_tensors(tensors, "out", manifest.outputs, manifest)
    out.print(tensors)


def plan_report(out: Console, report: PlanReport) -> None:
    """Draw a plan as `plan_table`, whether it can be used here, and its layers by type."""
    plan_table(out, report.manifest)
    if report.layers is None:
        out.print(f"layers: {report.layers_missing}", highlight=False, markup=False, soft_wrap=True)
    else:
        layers = Table("layer type", "count", title="layers of the engine")
        for kind, count in Counter(layer.type for layer in report.layers).most_common():
            layers.add_row(kind, str(count))
        out.print(layers)
    for problem in report.problems:
        out.print(f"[red]problem:[/red] {escape(problem)}", highlight=False, soft_wrap=True)


def _add_tensors(table: Table, direction: str, tensors: tuple[Tensor, ...], manifest: Manifest) -> None:
    for tensor in tensors[:_MAX_ROWS]:
        ranges = [p.ranges.get(tensor.name) for p in manifest.profiles]
        cells = [", ".join(_dims(s) for s in (r.min, r.opt, r.max)) if r else _dims(tensor.shape) for r in ranges]
        table.add_row(direction, tensor.name, tensor.dtype.lower(), *cells)
    if len(tensors) > _MAX_ROWS:
        table.add_row(direction, f"and {len(tensors) - _MAX_ROWS} more", "")


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join("?" if d < 0 else str(d) for d in shape) or "scalar"
