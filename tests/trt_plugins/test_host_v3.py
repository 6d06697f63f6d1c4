"""A plugin's life up to its first launch, driven as TensorRT drives it, on a machine without TensorRT or a GPU."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graphopt.core.op import OpSpec
from graphopt.passes.fused.ops import OPS as FUSED_OPS
from graphopt.passes.mixq.ops import OPS
from graphopt.passes.vq import hadamard_ops

BATCH, LENGTH, K, N, CAPACITY = 2, 5, 64, 48, 32
CHANNELS = 80  # that a transform makes of K
PREDICTED = 48  # capacity with online prediction
ROWS = (BATCH, LENGTH)


@dataclass(frozen=True)
class Case:
    spec: OpSpec
    activation: str
    emit: int

    @property
    def name(self) -> str:
        return f"{self.spec.name}_{self.activation}_{self.emit}"

    def shape(self, operand: str) -> tuple[int, ...]:
        fixed = {"gamma": (K,), "beta": (K,), "idx": (CAPACITY,), "wq": (N, K), "sw": (N,), "wo": (N, CAPACITY)}
        fixed |= {"bias": (N,), "wq4": (N, K // 2), "sg": (1, N), "set": (PREDICTED,), "signs": (CHANNELS,)}
        last = {
            "sx": 1,
            "xo": PREDICTED if self.spec.name.endswith("Online") else CAPACITY,
            "xq4": K // 2,
            "gate_up": 2 * K,
            "z": CHANNELS,
        }
        if operand == "y" and self.spec.family == "Linear":
            return (*ROWS, N)
        if f"emit_{operand}" in {a.name for a in self.spec.attributes} and not self.emit:
            return (*ROWS, 1)
        return fixed.get(operand, (*ROWS, last.get(operand, K)))

    def type(self, operand: str) -> str:
        codes = dict.fromkeys(("xq", "xq4", "wq", "wq4", "sg", "signs"), "i8")
        return {**codes, "sx": "f32", "sw": "f32", "idx": "i32", "set": "i32"}.get(operand, self.activation)

    def lines(self) -> Iterator[str]:
        yield f"case {self.name} {self.spec.name}"
        for attribute in self.spec.attributes:
            integer = isinstance(attribute.default, int)
            value = self.emit if attribute.name.startswith("emit_") else attribute.default
            value = PREDICTED if attribute.name == "capacity" else value
            yield f"field {attribute.name} {'i' if integer else 'f'} {value}"
        for param in self.spec.inputs:
            shape = " ".join(map(str, self.shape(param.name)))
            yield f"input {self.type(param.name)} none {shape}"
        yield "end"

    def expected(self) -> Iterator[str]:
        for i, param in enumerate(self.spec.outputs):
            yield f"{self.name} {i} {self.type(param.name)} {' '.join(map(str, self.shape(param.name)))}"


def _describe(program: Path, library: Path, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "cases.txt").write_text(text)
    return subprocess.run(
        [program, library, folder, "--describe"], capture_output=True, text=True, timeout=60, check=False
    )


def test_types_shapes_and_serialization(host_v3: Path, library: Path, tmp_path: Path) -> None:
    cases = [
        Case(spec, activation, emit)
        for spec in (*OPS, *hadamard_ops.OPS, *FUSED_OPS)
        if spec.plugin
        for activation in ("f32", "f16", "bf16")
        for emit in (0, 1)
    ]
    done = _describe(host_v3, library, tmp_path, "\n".join(line for case in cases for line in case.lines()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [line for case in cases for line in case.expected()]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case a NoSuchOp\nend", "no creator"),
        ("case a MixQRMSNorm\nfield emit_y i 0\ninput f16 none 2 64\nend", "createPlugin failed"),
        ("case a MixQQuantize\ninput f16 none 2 64\nend", "getOutputDataTypes failed"),
        ("case a MixQQuantize\ninput i8 none 2 64\ninput i32 none 16\nend", "refused operand 0"),
        ("case a MixQQuantize\ninput f16 none 2 64\ninput f16 none 16\nend", "refused operand 1"),
    ],
    ids=["unknown op", "missing epsilon", "missing input", "integer activations", "indices in half"],
)
def test_wrong_use_is_refused(host_v3: Path, library: Path, tmp_path: Path, text: str, reason: str) -> None:
    done = _describe(host_v3, library, tmp_path, text)
    assert done.returncode == 1
    assert reason in done.stderr
