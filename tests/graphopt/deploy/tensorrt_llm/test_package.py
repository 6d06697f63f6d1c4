"""The package that the folder holds, in PyTorch on the CPU and in a stand-in for TensorRT-LLM."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.deploy.tensorrt_llm import PackageOptions, write_package

ROOT = Path(__file__).parents[4]
STAND_IN = ROOT / "tests" / "fixtures" / "tensorrt_llm"
Optimized = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def torch_run() -> Run:
    """torch_run(script, *arguments): run it in a Python that has torch."""
    script = ROOT / "scripts" / "fetch_torch.py"
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no torch here: {found.stderr.strip()}")
    # An editable installation is found through a hook that a python with other paths may lack.
    layout = [ROOT, ROOT / "benchmarks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(script: Path, *arguments: object, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (*paths, *layout)))
        command = [found.stdout.strip(), script, *map(str, arguments)]
        return subprocess.run(
            command, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def folders(
    models: types.ModuleType, optimized: Optimized, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Small decoders in 8 and 4 bits, with the logits of their graphs beside them."""
    made = []
    for scheme, dtype, sizes in (
        ("mixq-w8a8", "float32", {}),
        (ROOT / "models" / "recipes" / "llama-w4a8.yaml", "float32", {"tie_word_embeddings": True}),
        ("mixq-w4a8", "float16", {}),
        ("mixq-w8a8", "bfloat16", {"qkv_bias": True}),
    ):
        model = optimized(scheme, dtype, **sizes)
        folder = tmp_path_factory.mktemp("deployed") / f"{Path(scheme).stem}_{dtype}"
        write_package(model, folder, PackageOptions(plugins=library))
        models.write_reference(folder, model, dtype)
        made.append(folder)
    return made


def test_versions_that_are_not_known_are_refused(folders: list[Path]) -> None:
    spec = importlib.util.spec_from_file_location(
        "versions", folders[0] / "package" / "graphopt_trtllm" / "versions.py"
    )
    assert spec is not None and spec.loader is not None
    versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    for known in ("1.2.0", "1.2.1", "1.2.0rc4"):
        versions.require_known(known)
    for unknown in ("1.1.0", "1.3.0rc20", "12.2.0", "2.0"):
        with pytest.raises(ImportError, match=rf"knows TensorRT-LLM 1.2, and {unknown} is installed"):
            versions.require_known(unknown)


@pytest.mark.torch
def test_ops_and_decoders_on_the_cpu(torch_run: Run, folders: list[Path], tmp_path: Path) -> None:
    """benchmarks/torch_ops.py as far as the CPU goes: evaluators, opcheck, torch.compile, logits of the graphs."""
    report = tmp_path / "report.json"
    script = ROOT / "benchmarks" / "torch_ops.py"
    done = torch_run(script, "--device", "cpu", "--quick", "--json", report, *folders)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["case"]: row for row in json.loads(report.read_text())}
    assert all(row["failures"] == [] for row in rows.values())
    assert rows["evaluators"]["checks"] >= 100 and rows["fused"]["checks"] >= 100 and rows["modules"]["checks"] == 16
    assert rows["opcheck"]["checks"] == 12 and rows["compile"]["checks"] == 4
    assert rows["decoder mixq-w8a8_float32"]["worst"] < 5e-3
    assert sum(case.startswith("decoder") for case in rows) == len(folders)


@pytest.mark.torch
def test_a_damaged_checkpoint_is_refused_by_the_package(torch_run: Run, folders: list[Path], tmp_path: Path) -> None:
    whole = (folders[0] / "checkpoint" / "model.safetensors").read_bytes()
    config = json.loads((folders[0] / "checkpoint" / "config.json").read_text())
    config["graphopt"]["linears"]["model.layers.0.self_attn.o_proj"]["outliers"] += 16
    damaged = {"cut": (whole[:-100], None), "other": (whole, config), "fine": (whole, None)}
    load = tmp_path / "load.py"
    load.write_text("import sys; from graphopt_trtllm.llama import Llama; Llama.load(sys.argv[1])")
    messages = {}
    for name, (tensors, changed) in damaged.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(tensors)
        text = json.dumps(changed) if changed else (folders[0] / "checkpoint" / "config.json").read_text()
        (folder / "config.json").write_text(text)
        messages[name] = torch_run(load, folder, paths=(folders[0] / "package",)).stderr
    assert messages["fine"] == ""
    assert "the header does not fit the file" in messages["cut"]
    assert "model.layers.0.self_attn.o_proj" in messages["other"] and "write the checkpoint again" in messages["other"]


def installed(folder: Path, version: str) -> Path:
    """What an installation leaves for importlib.metadata."""
    info = folder / f"tensorrt_llm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    return folder


@pytest.mark.torch
def test_the_model_for_tensorrt_llm_is_the_one_for_pytorch(torch_run: Run, folders: list[Path], tmp_path: Path) -> None:
    """In a stand-in with TensorRT-LLM's interfaces: it cannot be installed without its GPU."""
    paths = (installed(tmp_path, "1.2.1"), STAND_IN)
    for folder in folders[:2]:
        done = torch_run(STAND_IN / "run.py", folder, paths=paths)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "runs on one GPU" in done.stdout and "takes no LoRA adapters" in done.stdout


@pytest.mark.torch
def test_an_unknown_tensorrt_llm_stops_the_import(torch_run: Run, folders: list[Path], tmp_path: Path) -> None:
    done = torch_run(STAND_IN / "run.py", folders[0], paths=(installed(tmp_path, "1.3.0"), STAND_IN))
    assert done.returncode == 1
    assert "ImportError: graphopt_trtllm knows TensorRT-LLM 1.2, and 1.3.0 is installed" in done.stderr
