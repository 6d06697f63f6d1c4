"""Write a model repository: everything into a hidden folder first, which then takes its name."""

__all__ = ["RepositoryOptions", "write_repository"]

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt import compile, ir
from graphopt.calibrate.feeds import TOKENS
from graphopt.deploy.digests import write_manifest
from graphopt.deploy.staging import staging
from graphopt.deploy.triton import pages
from graphopt.deploy.triton.bls import BlsRunner
from graphopt.deploy.triton.check import check_engine
from graphopt.deploy.triton.config import PLAN, EngineShape, engine_config, generate_config, parse, plan_file, to_text
from graphopt.deploy.triton.serving import MANIFEST_STEM
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.engine import manifest as manifests
from graphopt.engine.build import BuildOptions, build
from graphopt.engine.digest import sha256
from graphopt.engine.manifest import Manifest
from graphopt.engine.plugins import LIBRARY, LIBRARY_TENSORRT8, locate
from graphopt.engine.profiles import Limits
from graphopt.engine.progress import OnStep
from graphopt.errors import DeployError
from graphopt.ir import kv_cache
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners.decoder import LOGITS, Decoder
from graphopt.runners.host import ort_runner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = "1"


@dataclass(frozen=True)
class RepositoryOptions:
    """How to serve a model.

    Attributes:
        name: of the model that clients ask.
        execution: a key of `graphopt.deploy.triton.settings.EXECUTIONS`; an .onnx file that ONNX Runtime shall not
            run is built first. Models that are no language models are executed by Triton, whatever it says.
        tokenizer: a tokenizer.json, its folder or a .gguf file; None for the tokenizer.json beside the model.
        max_batch: most samples or sequences that Triton puts into a batch; 0 for none.
        plugins: the plugin library of the plans; None to look for it.
        streams, waiting, max_prompt_tokens, max_new_tokens, threads: as in `GenerateSettings`.
    """

    name: str = "model"
    execution: str = "trt"
    tokenizer: Path | None = None
    max_batch: int = 1
    plugins: Path | None = None
    streams: int = GenerateSettings.streams
    waiting: int = GenerateSettings.waiting
    max_prompt_tokens: int = GenerateSettings.max_prompt_tokens
    max_new_tokens: int = GenerateSettings.max_new_tokens
    threads: int = GenerateSettings.threads

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DeployError(f"--name '{self.name}' cannot name a folder and a model; use letters, digits, . _ and -")
        if self.max_batch < 0:
            raise DeployError(f"--max-batch must be 0 or more, not {self.max_batch}")

    @property
    def engine(self) -> str:
        """Name of the engine model of a language model."""
        return f"{self.name}_engine"

    def settings(self) -> GenerateSettings:
        """Return what the generate model is told."""
        return GenerateSettings(
            self.execution,
            self.engine if self.execution == "bls" else "",
            self.streams,
            self.waiting,
            self.max_prompt_tokens,
            self.max_new_tokens,
            self.threads,
        )


def write_repository(
    models: Sequence[Path], output: Path, options: RepositoryOptions, *, on_step: OnStep | None = None
) -> list[Path]:
    """Write the folder ``output`` that Triton serves a model from.

    Args:
        models: one .onnx file; or plans of one model, each with its manifest beside it, for different GPUs.
        output: the repository; must not exist.
        options: how to serve.
        on_step: told about the progress of a build.

    Returns:
        The files, relative to ``output``.

    Raises:
        DeployError: the model cannot be served so.
        GraphOptError: a file cannot be used, or the build is refused.
        OutputError: the folder exists or cannot be written; nothing was written.
    """
    settings = options.settings()
    options = replace(options, tokenizer=options.tokenizer or models[0].with_name("tokenizer.json"))
    with staging(output) as folder:
        if options.execution == "ort":
            names = _write_host(folder, _only(models), options, settings)
            about: dict[str, object] = {"models": names, "execution": "ort"}
        else:
            with _plans(models, options, on_step) as plans:
                names = _write_plans(folder, plans, options, settings)
                first = manifests.read(plans[0])
                about = {
                    "models": names,
                    "execution": options.execution if _is_language_model(first) else "engine",
                    "tensorrt": first.tensorrt,
                    "targets": sorted({t for p in plans for t in manifests.read(p).targets}),
                }
        pages.write_pages(folder, options.name, about)
        write_manifest(folder, about)
        return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def _only(models: Sequence[Path]) -> Path:
    if len(models) != 1 or models[0].suffix != ".onnx":
        raise DeployError(f"ONNX Runtime serves one .onnx file, not {', '.join(map(str, models))}")
    return models[0]


@contextmanager
def _plans(models: Sequence[Path], options: RepositoryOptions, on_step: OnStep | None) -> Iterator[Sequence[Path]]:
    """Yield plans: those given, or the one built from an .onnx file."""
    if all(m.suffix == ".plan" for m in models):
        yield models
        return
    if len(models) > 1:
        raise DeployError("give one .onnx file, or plans only")
    with tempfile.TemporaryDirectory(prefix="graphopt-plan-") as scratch:
        plan = Path(scratch) / PLAN
        model = ir.load(models[0])
        compile.check(model)
        build(models[0], plan, BuildOptions(plugins=options.plugins, limits=_limits(model, options)), on_step=on_step)
        try:
            yield [plan]
        except DeployError as e:
            raise DeployError(str(e).replace(str(plan), str(models[0]))) from e


def _limits(model: ir.Model, options: RepositoryOptions) -> Limits:
    """Return the sizes of an engine that the longest prompt and the longest text behind it fit into."""
    batch, prompt, new = max(1, options.max_batch), options.max_prompt_tokens, options.max_new_tokens
    names = {tensor.name for tensor in model.graph.inputs}
    language = TOKENS in names and any(tensor.name == LOGITS for tensor in model.graph.outputs)
    if not language or kv_cache.read(model.shell.metadata_props) is not None:
        return Limits(batch, prompt, new)  # a cache that is updated in place holds both
    if any(name.startswith("past") for name in names):
        return Limits(batch, prompt, prompt + new)
    return Limits(batch, prompt + new, 0)  # all tokens of a text go through every call


def _write_host(folder: Path, model: Path, options: RepositoryOptions, settings: GenerateSettings) -> list[str]:
    """A generate model that runs the ONNX file itself."""
    # Says so if the model is no language model, or takes fewer tokens.
    Decoder(ort_runner(model)).begin(settings.max_tokens)
    version = _write_generate(folder, options, settings, model)
    # Not a copy: file names inside the model are not followed to where they lead, and do not become names here.
    loaded = ir.load(model)
    compile.check(loaded)
    ir.save(loaded, version / "model.onnx")
    return [options.name]


def _write_plans(
    folder: Path, plans: Sequence[Path], options: RepositoryOptions, settings: GenerateSettings
) -> list[str]:
    read = [manifests.read(p) for p in plans]
    for plan, manifest in zip(plans, read, strict=True):
        if sha256(plan) != manifest.plan_sha256:
            raise DeployError(f"{plan} is not the plan that its manifest describes; build it again")
        if _interface(manifest) != _interface(read[0]):
            raise DeployError(f"{plan} and {plans[0]} differ in inputs, outputs or profiles; build both from one model")
    _write_plugins(folder, read, options)
    if not _is_language_model(read[0]):
        _write_engine(folder, options.name, plans, read, EngineShape(options.max_batch))
        return [options.name]
    Decoder(BlsRunner(plans[0], read[0], options.engine)).room(settings.max_tokens)
    version = _write_generate(folder, options, settings, plans[0])
    if options.execution == "trt":
        if len(plans) > 1:
            raise DeployError("graphopt's runner serves one plan; give one, or --execution bls")
        _copy_plan(plans[0], version / PLAN)
        return [options.name]
    shutil.copy(manifests.path_for(plans[0]), manifests.path_for(version / MANIFEST_STEM))
    if read[0].cache is None:
        raise DeployError(
            f"{plans[0]} has no cache of fixed capacity for Triton to keep; optimize the model with --kv-cache static, "
            "or give --execution trt"
        )
    _write_engine(folder, options.engine, plans, read, EngineShape(max(1, options.max_batch), settings.streams))
    return [options.name, options.engine]


def _write_generate(folder: Path, options: RepositoryOptions, settings: GenerateSettings, model: Path) -> Path:
    """Write all of the generate model but what it runs; return the folder of its version."""
    tokenizer = options.tokenizer
    if tokenizer is None or not tokenizer.exists():
        raise DeployError(f"there is no {tokenizer}; say where the tokenizer is with --tokenizer")
    version = folder / "models" / options.name / _VERSION
    version.mkdir(parents=True)
    Tokenizer.open(tokenizer).save(version / "tokenizer.json")
    (version / "model.py").write_text(pages.render("model.py", name=options.name), encoding="utf-8")
    text = to_text(generate_config(options.name, settings))
    parse(text, "config.pbtxt")
    (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
    return version


def _write_engine(folder: Path, name: str, plans: Sequence[Path], read: Sequence[Manifest], shape: EngineShape) -> None:
    """A model of Triton's TensorRT backend; the first plan is also that of GPUs that have none of their own."""
    for plan, manifest in zip(plans, read, strict=True):
        if manifest.flavour != "tensorrt":
            raise DeployError(f"{plan} is a plan of TensorRT-RTX, which Triton does not run; build it with TensorRT")
    version = folder / "models" / name / _VERSION
    version.mkdir(parents=True)
    _copy_plan(plans[0], version / PLAN)
    targets: list[str] = []
    if len(plans) > 1:
        for plan, manifest in zip(plans, read, strict=True):
            for target in manifest.targets:
                if target in targets:
                    raise DeployError(f"two plans are for compute capability {target}; give one for each")
                targets.append(target)
                _copy_plan(plan, version / plan_file(target))
    config = version.parent / "config.pbtxt"
    config.write_text(to_text(engine_config(name, read[0], shape, targets)), encoding="utf-8")
    check_engine(config, read[0])


def _copy_plan(plan: Path, target: Path) -> None:
    shutil.copyfile(plan, target)
    shutil.copyfile(manifests.path_for(plan), manifests.path_for(target))


def _write_plugins(folder: Path, read: Sequence[Manifest], options: RepositoryOptions) -> None:
    """The library with the plugins, and the one that registers it in programs that only open it, as Triton does."""
    wanted = {m.plugins.sha256: m for m in read if m.plugins is not None}
    if not wanted:
        return
    if len(wanted) > 1:
        raise DeployError("the plans were built with different plugin libraries; build them with one")
    (digest, manifest) = next(iter(wanted.items()))
    library = _library(manifest, options)
    if sha256(library) != digest:
        raise DeployError(f"{library} is not the library that the plan was built with; give that one with --plugins")
    by_triton = options.execution != "trt" or not _is_language_model(read[0])
    if by_triton and library.name != LIBRARY:
        raise DeployError(
            f"{library} is for TensorRT 8 and cannot be registered in Triton; build with TensorRT 10 or 11"
        )
    target = folder / "plugins"
    target.mkdir()
    shutil.copyfile(library, target / library.name)
    if library.name == LIBRARY:
        autoreg = library.with_name(pages.AUTOREG)
        if not autoreg.is_file():
            raise DeployError(
                f"{autoreg} is missing, which registers the plugins in Triton; build it with make plugins"
            )
        shutil.copyfile(autoreg, target / pages.AUTOREG)


def _library(manifest: Manifest, options: RepositoryOptions) -> Path:
    if options.plugins is not None:
        return locate(options.plugins)
    recorded = Path(manifest.plugins.path) if manifest.plugins else Path()
    known = recorded.name in (LIBRARY, LIBRARY_TENSORRT8) and recorded.is_file()
    return recorded if known else locate()


def _interface(manifest: Manifest) -> tuple[object, ...]:
    return manifest.inputs, manifest.outputs, manifest.profiles, manifest.cache


def _is_language_model(manifest: Manifest) -> bool:
    return any(t.name == TOKENS for t in manifest.inputs) and any(t.name == LOGITS for t in manifest.outputs)
