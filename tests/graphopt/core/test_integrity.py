"""Damage of stored weights is found before a kernel reads them, and the sentence names the tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from typer.testing import CliRunner

from graphopt import compile, ir
from graphopt.cli.main import app
from graphopt.core.recipe import Recipe
from graphopt.errors import ModelError
from graphopt.ir import weights
from graphopt.passes import OPS, SCHEMES
from tests.support.decoders import write_decoder

Change = Callable[[np.ndarray], Any]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("integrity") / "m.onnx")


def optimized(decoder: Path, preset: str) -> ir.Model:
    model = ir.load(decoder)
    compile.optimize(model, Recipe.preset(preset, SCHEMES))
    return model


def operands(model: ir.Model) -> Iterator[tuple[gs.Node, str, gs.Constant]]:
    specs = {s.name: s for s in OPS}
    for node in model.graph.nodes:
        if node.op in specs and specs[node.op].damage is not None:
            for parameter, tensor in zip(specs[node.op].inputs, node.inputs, strict=True):
                if isinstance(tensor, gs.Constant):
                    yield node, parameter.name, tensor


def damaged(model: ir.Model, operand: str, change: Change) -> str:
    """Change the first such operand of the model; return the tensor's name."""
    node, _, tensor = next(found for found in operands(model) if found[1] == operand)
    values = np.array(weights.read(tensor))
    changed = change(values)
    node.inputs[list(node.inputs).index(tensor)] = gs.Constant(tensor.name, values if changed is None else changed)
    return str(tensor.name)


def put(index: Any, value: Any) -> Change:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


def cut(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[:, :, :, :-1])


@pytest.mark.parametrize("preset", [p for s in SCHEMES.values() for p in s.presets])
def test_what_is_written_passes(decoder: Path, preset: str) -> None:
    compile.check(optimized(decoder, preset))


@pytest.mark.parametrize(
    ("preset", "operand", "change", "clause"),
    [
        ("nf4", "types", put((0, 3), 0x07), r"holds type id 7 for group 0 of output channel 3, which its table does"),
        ("mant-w4a16", "table", put((5, 2), np.nan), r"holds NaN in row 5"),
        ("mant-w4a16", "table", put(slice(None), np.nan), r"types.*holds type id \d+ for group 0 of output channel 0"),
        ("mant-int8", "table", put(slice(None), 0), r"holds type id \d+ for group 0 of output channel 0"),
        ("mant-w4a8", "scale", put((0, 1), np.inf), r"holds NaN or Inf"),
        ("mant-int8", "scale", put((0, 1), -0.5), r"holds a negative number"),
        ("vq-gptvq2", "codebooks", put((0, 0, 0, 9, 1), np.nan), r"holds NaN or Inf"),
        ("vq-gptvq2", "codebooks", cut, r"has 255 entries for codes of 8 bits"),
        ("vq-quip4", "ratios", put(0, np.nan), r"holds NaN or Inf"),
    ],
)
def test_damage_is_named(decoder: Path, preset: str, operand: str, change: Change, clause: str) -> None:
    model = optimized(decoder, preset)
    name = damaged(model, operand, change)
    with pytest.raises(ModelError, match=clause) as e:
        compile.check(model)
    stem = name.rpartition("_")[0]
    assert f"tensor '{stem}" in str(e.value)
    assert "the file is damaged, make it again" in str(e.value)


def test_padding_beyond_the_channels_means_nothing(decoder: Path) -> None:
    """96 output channels fill their bytes; 40 leave nibbles that no channel reads."""
    model = optimized(decoder, "nf4")
    node, _, types = next(found for found in operands(model) if found[1] == "types")
    scale = node.inputs[3]
    few = np.asarray(weights.read(scale))[:, :20]
    spec = next(s for s in OPS if s.name == node.op)
    assert spec.damage is not None
    packed = np.array(weights.read(types))
    packed[0, 15] = -1  # channels 15 and 31 of the first 32
    constants = {"types": packed, "scale": few, "table": np.asarray(weights.read(node.inputs[4]))}
    assert spec.damage(constants, {}) == (
        "types",
        "holds type id 15 for group 0 of output channel 15, which its table does not define",
    )
    packed[0, 15] = 0
    packed[0, 5] = -16  # 0xf0: channel 21
    assert spec.damage(constants, {}) is None


@pytest.mark.parametrize("verb", ["inspect", "build"])
def test_commands_refuse_a_damaged_file(decoder: Path, tmp_path: Path, verb: str) -> None:
    model = optimized(decoder, "nf4")
    name = damaged(model, "types", put((0, 0), 0x33))
    ir.save(model, tmp_path / "bad.onnx")
    output = ["-o", str(tmp_path / "bad.plan")] if verb == "build" else []
    result = CliRunner().invoke(app, [verb, str(tmp_path / "bad.onnx"), *output])
    assert result.exit_code == 2
    assert f"tensor '{name}'" in result.stderr.replace("\n", "")
    assert not (tmp_path / "bad.plan").exists()
