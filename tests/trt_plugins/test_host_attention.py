"""The plugins of attention over a cache describe their outputs as the evaluators of their ops make them."""

import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.core.op import OpSpec
from graphopt.passes import OPS

SPECS = [s for s in OPS if s.family == "CachedAttention" and s.plugin]
NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
    np.dtype(np.int8): "i8",
    np.dtype(np.int32): "i32",
}


def _line(array: np.ndarray) -> str:
    return f"{NAMES[array.dtype]} {' '.join(map(str, array.shape))}"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_outputs(spec: OpSpec, dtype: type, host_v3: Path, library: Path, tmp_path: Path) -> None:
    inputs = spec.examples(np.random.default_rng(0), np.dtype(dtype))
    lines = [f"case c {spec.name}"]
    for attribute in spec.attributes:
        kind = "i" if isinstance(attribute.default, int) else "f"
        lines.append(f"field {attribute.name} {kind} {attribute.default}")
    for array in inputs:
        kind, _, shape = _line(array).partition(" ")
        lines.append(f"input {kind} none {shape}")
    (tmp_path / "cases.txt").write_text("\n".join([*lines, "end"]) + "\n")
    command = [host_v3, library, tmp_path, "--describe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    outputs = spec.evaluate(*inputs, **{a.name: a.default for a in spec.attributes})
    assert done.stdout.splitlines() == [f"c {i} {_line(array)}" for i, array in enumerate(outputs)]
