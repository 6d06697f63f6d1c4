"""`graphopt bench`: how fast an engine is, and how fast the kernels are."""

__all__ = ["app"]

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli.console import JsonFlag, console, emit, guard, stdout

if TYPE_CHECKING:
    from graphopt.engine.measure import SlowLayer

app = typer.Typer(no_args_is_help=True, help="Measure how fast things are on the GPU of this machine.")


@app.command()
@guard
def engine(
    plan: Annotated[Path, typer.Argument(help="A .plan file with its manifest beside it.")],
    baseline: Annotated[Path | None, typer.Option(help="Another plan, such as the fp16 one, timed beside it.")] = None,
    shapes: Annotated[
        str | None, typer.Option(help="Shapes of the inputs, such as x:1x4; default: the usual ones.")
    ] = None,
    profile: Annotated[int, typer.Option(min=0, help="Whose usual shapes to take.")] = 0,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Time the replay of a CUDA graph, too.")
    ] = True,
    samples: Annotated[int, typer.Option(min=20, help="Timed runs.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    json: JsonFlag = False,
) -> None:
    """Latency without and with a CUDA graph, time by op and memory of a plan, on random inputs; with a baseline, also
    what is slower than there.

    Examples:

      graphopt bench engine model.plan

      graphopt bench engine model.plan --baseline fp16.plan --shapes 'input_ids:1x1'

      graphopt bench engine model.plan --baseline fp16.plan --json > bench.json

      graphopt optimize model.onnx --from-profile bench.json     (leaves out what was slower)
    """
    from graphopt.engine.measure import slower

    plans = {"plan": plan} | ({"baseline": baseline} if baseline else {})
    results = {
        name: _measure(path, shapes, profile, samples, seed, plugins, cuda_graph=cuda_graph)
        for name, path in plans.items()
    }
    layers = [r.pop("layers") for r in results.values()]
    slow = slower(*layers) if baseline else []
    data = {"baseline": None, **results, "slower": [s.to_dict() for s in slow]}
    emit(data, json, lambda out: _render(out, results, slow))


@app.command()
@guard
def kernels(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the rows to this file as they come, as benchmarks/results/<gpu>/<suite>.json."
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option(help="Which kernels: fused, mant, mixq, mixq_quantize, mixq_residual, vq or vq_hadamard.")
    ] = "mixq",
    plugins: Annotated[Path | None, typer.Option(help="The plugin library; default: looked for.")] = None,
    json: JsonFlag = False,
) -> None:
    """Time the kernels beside torch and bitsandbytes, after checking them on the same buffers.

    Needs torch with CUDA, but neither TensorRT nor the packages that models need.

    Examples:

      graphopt bench kernels

      graphopt bench kernels --suite mixq_quantize -o quantize.json
    """
    from graphopt.bench.capi import Library
    from graphopt.bench.ceilings import Ceilings
    from graphopt.bench.record import environment, plain, write
    from graphopt.bench.suites import suite as suite_of
    from graphopt.engine.plugins import locate

    chosen = suite_of(suite)
    library = Library(locate(plugins))
    ceilings = Ceilings.measure()
    shared = {**environment(library), **ceilings.fields()}
    out = console if json else stdout
    out.print(
        f"{shared['gpu']}: copies {shared['copy_tb_s']} TB/s, fp16 {shared['fp16_tflop_s']} TFLOP/s", highlight=False
    )
    rows = []
    for row in chosen.run(library, ceilings):
        rows.append(row)
        out.print(_line(row), highlight=False, soft_wrap=True)
        if output is not None:  # after every row, as a run that is cut off has still measured something
            write(output, rows, shared)
    if json:
        emit({"rows": plain(rows, shared)}, json, lambda out: None)


def _line(row: Any) -> str:
    """One measurement as text: sizes, time, share of the floor, speed over each peer."""
    size = " ".join(f"{name}={value}" for name in "MNK" if (value := getattr(row, name)) is not None)
    peers = "  ".join(f"{us / row.us:.2f}x {name}" for name, us in row.peers.items())
    return f"{row.case:18} {size:24} {row.us:9.2f} us  {row.share:4.0%} of floor  {peers}".rstrip()


def _measure(
    plan: Path, shapes: str | None, profile: int, samples: int, seed: int, plugins: Path | None, *, cuda_graph: bool
) -> dict[str, Any]:
    from graphopt.engine.measure import by_op, latency
    from graphopt.engine.profiles import parse_shapes
    from graphopt.engine.run import Runner

    with Runner(plan, plugins) as runner:
        wanted = runner.shapes(parse_shapes(shapes, "--shapes") if shapes else None, profile)
        runner.fill(wanted, seed)
        timing = latency(runner, samples)
        replayed = None
        if cuda_graph:
            runner.capture()
            replayed = latency(runner, samples)
        layers = runner.layer_times()
        return {
            "file": str(plan),
            "shapes": {name: list(shape) for name, shape in wanted.items()},
            "latency": asdict(timing),
            "cuda_graph": asdict(replayed) if replayed else None,
            "memory": asdict(runner.memory()),
            "ops": [asdict(op) for op in by_op(layers)],
            "layers": layers,
        }


def _render(out: Console, results: dict[str, dict[str, Any]], slow: "list[SlowLayer]") -> None:
    table = Table("", *results)
    for way in ("latency", "cuda_graph"):
        for label, key in (("median", "median_us"), ("90 %", "p90_us"), ("99 %", "p99_us"), ("fastest", "min_us")):
            if all(r[way] for r in results.values()):
                shown = label if way == "latency" else f"{label}, CUDA graph"
                table.add_row(shown, *(f"{r[way][key]:,.1f} us" for r in results.values()))
    for label, key in (
        ("weights", "weights"),
        ("activations", "activations"),
        ("cache", "cache"),
        ("other inputs, outputs", "other_io"),
    ):
        table.add_row(label, *(f"{r['memory'][key] / 1e6:,.1f} MB" for r in results.values()))
    out.print(table)
    if "baseline" in results:
        base, ours = ((r["cuda_graph"] or r["latency"])["median_us"] for r in (results["baseline"], results["plan"]))
        ratio = base / ours
        out.print(f"{ratio:.2f} times as fast as the baseline", highlight=False)
    for layer in slow:
        out.print(layer.sentence, highlight=False, soft_wrap=True)
    for name, result in results.items():
        ops = Table("op", "layers", "us", "share", title=f"{name}: {result['file']}")
        for op in result["ops"]:
            ops.add_row(op["op"], str(op["layers"]), f"{op['us']:,.1f}", f"{op['share']:.1%}")
        out.print(ops)
