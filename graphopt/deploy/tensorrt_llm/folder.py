"""Write the folder: checkpoint, Python package, files for Triton, README, manifest."""

__all__ = ["PackageOptions", "write_package"]

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import graphopt
from graphopt import compile, ir
from graphopt.deploy.digests import write_manifest
from graphopt.deploy.staging import staging
from graphopt.deploy.tensorrt_llm import network, probe
from graphopt.deploy.tensorrt_llm.checkpoint import (
    check_config,
    config_of,
    quant_config,
    tensors_of,
    write_safetensors,
)
from graphopt.engine.plugins import LIBRARY, locate
from graphopt.errors import DeployError
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.tokenizer import Tokenizer

PACKAGE = "graphopt_trtllm"
_EXECUTABLE = 0o755
#: File of this package -> where it goes; {} is the Python package.
_TEMPLATES = {
    "README.md": "README.md",
    "serve.sh": "serve.sh",
    "run_triton.sh": "run_triton.sh",
    "model.yaml": "triton/tensorrt_llm/1/model.yaml",
    "model.py": "triton/tensorrt_llm/1/model.py",
}


@dataclass(frozen=True)
class PackageOptions:
    """What the checkpoint is made of, beside the graph.

    Attributes:
        config: the model's ``config.json``; None for the one beside the graph.
        tokenizer: a tokenizer.json, its folder or a .gguf file; None for the tokenizer.json beside the graph, if any.
        plugins: the library with the kernels; None to look for it.
        verify: run graph and checkpoint on some tokens and compare them.
    """

    config: Path | None = None
    tokenizer: Path | None = None
    plugins: Path | None = None
    verify: bool = True


def write_package(model: Path, output: Path, options: PackageOptions) -> list[Path]:
    """Write the folder ``output`` that TensorRT-LLM, Triton or PyTorch start from.

    Args:
        model: an optimized .onnx file.
        output: the folder; must not exist.
        options: what else it is made of.

    Returns:
        The files, relative to ``output``.

    Raises:
        DeployError: the model is none that the package can compute, or its configuration does not fit.
        GraphOptError: a file cannot be used.
        OutputError: the folder exists or cannot be written; nothing was written.
    """
    source = options.config or model.with_name("config.json")
    original = _read_config(source)
    config = LlamaConfig.from_hf(original)
    loaded = ir.load(model)
    compile.check(loaded)
    found = network.read(loaded)
    check_config(found, config, source)
    written = config_of(found, original, config, source)
    library = locate(options.plugins)
    if library.name != LIBRARY:
        raise DeployError(f"{library} is for TensorRT 8 and has not all kernels; give {LIBRARY} with --plugins")
    with staging(output) as folder:
        error = probe.compare(model, found, config) if options.verify else None
        _write_checkpoint(folder / "checkpoint", found, written, options.tokenizer, model)
        _write_sources(folder / "package", library)
        bits = sorted({x.bits for x in found.linears.values()})
        about = {
            "kind": "tensorrt-llm",
            "model": model.name,
            "layers": found.layers,
            "dtype": written["torch_dtype"],
            "bits": bits,
            "difference_of_logits": error,
        }
        _write_pages(folder, about)
        write_manifest(folder, about)
        return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise DeployError(f"cannot read {path} ({e.strerror or e}); give the model's config.json with --config") from e
    except ValueError as e:
        raise DeployError(f"{path} is not JSON ({e}); give the model's config.json with --config") from e
    if not isinstance(data, dict):
        raise DeployError(f"{path} is not a configuration; give the model's config.json with --config")
    return data


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_checkpoint(
    folder: Path, found: network.Network, config: Mapping[str, Any], tokenizer: Path | None, model: Path
) -> None:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors_of(found))
    _write_json(folder / "config.json", config)
    _write_json(folder / "hf_quant_config.json", quant_config(found))
    beside = model.with_name("tokenizer.json")
    if tokenizer is None and not beside.exists():
        return
    opened = Tokenizer.open(tokenizer or beside)
    opened.save(folder / "tokenizer.json")
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if opened.end_ids:
        _write_json(folder / "generation_config.json", {"eos_token_id": sorted(opened.end_ids)})


def _write_sources(folder: Path, library: Path) -> None:
    package = folder / PACKAGE
    package.mkdir(parents=True)
    for template in sorted(resources.files(__package__).joinpath("package").iterdir(), key=lambda t: t.name):
        name = template.name.removesuffix(".in")
        text = Template(template.read_text(encoding="utf-8")).substitute(version=graphopt.__version__)
        target = folder if name == "pyproject.toml" else package
        (target / name).write_text(text, encoding="utf-8")
    shutil.copyfile(library, package / LIBRARY)


def _write_pages(folder: Path, about: Mapping[str, Any]) -> None:
    linears = " and ".join(f"w{bits}a8" for bits in about["bits"])
    for template, target in _TEMPLATES.items():
        text = resources.files(__package__).joinpath("templates", f"{template}.in").read_text(encoding="utf-8")
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"version": graphopt.__version__, "model": about["model"], "dtype": about["dtype"], "linears": linears}
        path.write_text(Template(text).substitute(values), encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(_EXECUTABLE)
