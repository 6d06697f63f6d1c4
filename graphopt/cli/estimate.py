"""`graphopt estimate`: M-ANT's accelerator and its rivals, on paper."""

__all__ = ["config_workload", "estimate", "preset_workload"]

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from graphopt.cli.console import JsonFlag, emit, guard

if TYPE_CHECKING:
    from graphopt.estimate.model import Estimate
    from graphopt.estimate.workload import Workload
    from graphopt.models.llama_config import LlamaConfig


class Equal(str, Enum):
    """What all arrays have the same of."""

    area = "area"
    pes = "pes"


@guard
def estimate(
    model: Annotated[Path | None, typer.Argument(help="An .onnx file as exported; its weights are not read.")] = None,
    preset: Annotated[str | None, typer.Option(help="Instead of a file: sizes of a known model, or of OPT.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of each prompt, for the prefill phase.")] = 2048,
    context: Annotated[int, typer.Option(help="Tokens in the cache, for a step of the decode phase.")] = 2048,
    equal: Annotated[Equal, typer.Option(help="All arrays have M-ANT's area, or its number of PEs.")] = Equal.area,
    parameters: Annotated[Path | None, typer.Option(help="YAML with what to change of the parameters.")] = None,
    json: JsonFlag = False,
) -> None:
    """Estimate cycles, memory traffic and energy on M-ANT's processing elements and on int8, ANT- and OliVe-like ones.

    An analytical model of accelerators that nobody can buy; for what is measured on GPUs see 'graphopt bench'.

    Examples:

      graphopt estimate model.onnx --seq 2048 --context 2048

      graphopt estimate --preset llama-2-7b --batch 16 --equal pes --json
    """
    from graphopt.errors import ModelError
    from graphopt.estimate.model import estimate as run
    from graphopt.estimate.parameters import Parameters

    if (model is None) == (preset is None):
        raise ModelError("give either an .onnx file or --preset NAME")
    assumed = Parameters.load(parameters)
    workload = preset_workload(preset) if preset is not None else _file(model)
    found = run(workload, assumed, batch=batch, seq=seq, context=context, equal=equal.value)
    data = {"batch": batch, "seq": seq, "context": context, "equal": equal.value, **found.to_dict()}
    emit(data, json, lambda out: _render(out, found))


def _file(model: Path | None) -> "Workload":
    from graphopt import compile, ir
    from graphopt.estimate.workload import Workload

    assert model is not None
    loaded = ir.load(model)
    compile.canonicalize(loaded)
    return Workload.of_model(loaded)


def preset_workload(name: str) -> "Workload":
    """Return the workload of a model by its name.

    Raises:
        ModelError: there is no such preset.
    """
    from graphopt.errors import ModelError, nearest
    from graphopt.estimate.workload import DECODERS, Workload
    from graphopt.models.presets import LLAMA_PRESETS

    if name in DECODERS:
        return Workload.of_decoder(**DECODERS[name])  # type: ignore[arg-type]
    if name not in LLAMA_PRESETS:
        raise ModelError(f"no preset '{name}'{nearest(name, [*LLAMA_PRESETS, *DECODERS])}")
    return config_workload(LLAMA_PRESETS[name])


def config_workload(config: "LlamaConfig") -> "Workload":
    """Return the workload of a decoder that `graphopt model` can build."""
    from graphopt.estimate.workload import Workload

    return Workload.of_decoder(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        gated=True,
    )


def _render(out: Console, found: "Estimate") -> None:
    for phase in dict.fromkeys(p.phase for p in found.phases):
        table = Table("array", "PEs", "time", "bound", "DRAM", "energy", "M-ANT faster", "saves", title=phase)
        for p in (p for p in found.phases if p.phase == phase):
            table.add_row(
                p.array,
                str(p.pes),
                _si(p.seconds, "s"),
                p.bound,
                _si(p.total.dram.total / 8, "B"),
                _si(p.joules, "J"),
                f"{found.speedup(p.array, phase):.2f}x",
                f"{found.energy_reduction(p.array, phase):.2f}x",
            )
        out.print(table)


def _si(value: float, unit: str) -> str:
    """Return ``value`` with three digits and a decimal prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value / 1e-9:.3g} n{unit}"
