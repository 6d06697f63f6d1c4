"""The whole folder: what is in it, what is refused, and that nothing half-written stays."""

import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import graphopt
from graphopt.cli.main import app
from graphopt.deploy.tensorrt_llm import PackageOptions, write_package
from graphopt.deploy.tensorrt_llm.checkpoint import ARCHITECTURE
from graphopt.deploy.triton import check_repository
from graphopt.errors import DeployError, GraphOptError, OutputError
from tests.support.language import bytes_tokenizer

ROOT = Path(__file__).parents[4]
Optimized = Callable[..., Path]
PACKAGE = "package/graphopt_trtllm"


def test_a_folder(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    model = optimized("mixq-w8a8")
    files = write_package(model, out, PackageOptions(plugins=library))
    modules = {f"{PACKAGE}/{name}.py" for name in (
        "__init__", "executor", "fused", "layers", "library", "llama", "ops", "reference", "safetensors", "versions",
    )}  # fmt: skip
    assert {str(f) for f in files} == modules | {
        "README.md", "checkpoint/config.json", "checkpoint/hf_quant_config.json", "checkpoint/model.safetensors",
        "graphopt.json", f"{PACKAGE}/libgraphopt_plugins.so", "package/pyproject.toml", "run_triton.sh", "serve.sh",
        "triton/tensorrt_llm/1/model.py", "triton/tensorrt_llm/1/model.yaml",
    }  # fmt: skip
    assert (out / PACKAGE / library.name).read_bytes() == library.read_bytes()
    assert [p.name for p in out.parent.iterdir()] == ["folder"], "nothing half-written stays"
    about = check_repository(out)
    assert about["kind"] == "tensorrt-llm" and about["layers"] == 2 and about["bits"] == [8]
    assert about["difference_of_logits"] < 2e-3
    assert len(about["files"]) == len(files) - 1


def test_servers_listen_on_loopback_and_scripts_run(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    write_package(optimized(), out, PackageOptions(plugins=library, verify=False))
    for script in ("serve.sh", "run_triton.sh"):
        assert os.access(out / script, os.X_OK)
        assert subprocess.run(["sh", "-n", out / script], check=False).returncode == 0
        lines = [line for line in (out / script).read_text().splitlines() if not line.startswith("#")]
        assert any("127.0.0.1" in line for line in lines) and not any("0.0.0.0" in line for line in lines)
    for text in (
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--model-control-mode=none",
    ):
        assert text in (out / "run_triton.sh").read_text()
    arguments = yaml.safe_load((out / "triton" / "tensorrt_llm" / "1" / "model.yaml").read_text())
    assert arguments["backend"] == "pytorch" and arguments["tensor_parallel_size"] == 1
    assert (out / arguments["model"] / "config.json").is_file(), "run_triton.sh starts the server in this folder"
    assert arguments["triton_config"] == {"max_batch_size": 0, "decoupled": True}
    assert arguments["max_batch_size"] and arguments["max_seq_len"], "limits are on by default"


def test_triton_gets_the_model_of_tensorrt_llm_behind_ours(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    """run_triton.sh copies theirs, which a folder stands for here, and hands arguments on."""
    out = tmp_path / "folder"
    write_package(optimized(), out, PackageOptions(plugins=library, verify=False))
    theirs = tmp_path / "llmapi"
    (theirs / "1").mkdir(parents=True)
    for name in ("config.pbtxt", "1/model.py", "1/helpers.py"):
        (theirs / name).write_text(f"# {name}")
    server = tmp_path / "server"
    server.write_text('#!/bin/sh\npwd\necho "$@"\n')
    server.chmod(0o755)
    environment = {**os.environ, "TRITONSERVER": str(server)}
    script = out / "run_triton.sh"
    missing = subprocess.run(
        [script], env={**environment, "LLMAPI": "/none"}, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2 and "say where it is with LLMAPI=FOLDER" in missing.stderr
    done = subprocess.run(
        [script, "--http-port=1"],
        env={**environment, "LLMAPI": str(theirs)},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, arguments = done.stdout.splitlines()
    assert Path(folder) == out and arguments.endswith("--http-port=1")
    model = out / "triton" / "tensorrt_llm"
    assert (model / "config.pbtxt").read_text() == "# config.pbtxt"
    assert (model / "1" / "llmapi_model.py").read_text() == "# 1/model.py"
    assert "from llmapi_model import TritonPythonModel" in (model / "1" / "model.py").read_text()


def test_a_tokenizer_comes_along(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    options = PackageOptions(tokenizer=tmp_path / "tokenizer.json", plugins=library, verify=False)
    write_package(optimized(), tmp_path / "folder", options)
    told = json.loads((tmp_path / "folder" / "checkpoint" / "tokenizer_config.json").read_text())
    assert told == {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert (tmp_path / "folder" / "checkpoint" / "tokenizer.json").is_file()


def test_the_package_is_as_clean_as_this_one(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    write_package(optimized(), tmp_path / "folder", PackageOptions(plugins=library, verify=False))
    package = tmp_path / "folder" / "package"
    for source in package.rglob("*.py"):
        py_compile.compile(str(source), doraise=True)
        assert len(source.read_text().splitlines()) < 400
        assert "pickle" not in source.read_text() and "torch.load" not in source.read_text()
        source.with_name("__pycache__").exists()
    for verb in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *verb, "--no-cache", "--config", str(ROOT / "pyproject.toml"), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    project = (package / "pyproject.toml").read_text()
    assert f'version = "{graphopt.__version__}"' in project
    executor = (package / "graphopt_trtllm" / "executor.py").read_text()
    assert f'ARCHITECTURE = "{ARCHITECTURE}"' in executor, "the checkpoint names what the package registers"


def test_a_failure_leaves_nothing(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    model = optimized()
    config = json.loads(model.with_name("config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0}))
    options = PackageOptions(config=tmp_path / "config.json", plugins=library)
    with pytest.raises(DeployError, match="computes other logits"):
        write_package(model, tmp_path / "out" / "folder", options)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="it exists"):
        write_package(model, tmp_path / "folder", PackageOptions(plugins=library, verify=False))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot read .* give the model's config.json with --config"),
        ("{", "is not JSON"),
        ("[]", "is not a configuration"),
        ('{"model_type": "gpt2"}', "is not a Llama-family decoder"),
    ],
)
def test_configurations_that_cannot_be_used(
    optimized: Optimized, library: Path, tmp_path: Path, text: str | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(GraphOptError, match=reason):
        write_package(optimized(), tmp_path / "o", PackageOptions(config=tmp_path / "c.json", plugins=library))


def test_the_library_for_tensorrt_8_is_refused(optimized: Optimized, tmp_path: Path) -> None:
    library = tmp_path / "libgraphopt_plugins_trt8.so"
    library.write_bytes(b"kernels")
    with pytest.raises(DeployError, match="is for TensorRT 8"):
        write_package(optimized(), tmp_path / "o", PackageOptions(plugins=library))


def test_a_changed_or_added_tensor_is_found(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    write_package(optimized(), out, PackageOptions(plugins=library, verify=False))
    extra = out / "checkpoint" / "pytorch_model.bin"
    extra.write_bytes(b"a pickle")
    with pytest.raises(DeployError, match=r"pytorch_model.bin does not belong"):
        check_repository(out)
    extra.unlink()
    with (out / "checkpoint" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(DeployError, match=r"model.safetensors was changed"):
        check_repository(out)


def test_the_command(optimized: Optimized, library: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    command = ["deploy", "tensorrt-llm", str(optimized("mixq-w4a8")), "-o", str(out), "--plugins", str(library)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["folder"] == str(out) and "checkpoint/model.safetensors" in told["files"]
    assert CliRunner().invoke(app, ["deploy", "check", str(out)]).exit_code == 0
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "exists" in again.output.replace("\n", " ")
