"""The rules of ARCHITECTURE.md that a machine can check: who imports whom, sizes of files, where tests lie."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Folder of the checkout -> its package.
PACKAGES = {"graphopt": "graphopt", "passes": "graphopt.passes", "models": "graphopt.models"}
MODULE_LINES, FUNCTION_LINES, ADAPTER_LINES = 400, 60, 200

#: Tests of a folder as a whole, which mirror no single module.
WHOLE_FOLDER = {
    "graphopt/cli/test_shapes.py": "what all verbs print with --json",
    "graphopt/compare/test_smollm2.py": "perplexity of the real model, recorded",
    "graphopt/engine/test_custom_ops.py": "engines with every custom op",
    "graphopt/deploy/tensorrt_llm/test_package.py": "what package/ becomes, in PyTorch",
    "models/test_llama_rtx.py": "an engine of the decoder",
    "passes/canonicalize/test_changed_exports.py": "the same with something changed at random",
    "passes/canonicalize/test_exporters.py": "every exporter's file through all passes",
    "passes/canonicalize/test_tidying.py": "the stages that are no rules, which work together",
    "trt_plugins/test_host_attention.py": "attention plugins as TensorRT drives them",
    "trt_plugins/test_host_v3.py": "the plugins as TensorRT drives them",
    "trt_plugins/test_rtx_build.py": "engines with the plugins",
}
#: Folders of tests that mirror no source folder.
FREE = {"contract", "cuda", "e2e", "fixtures", "golden", "repo", "support"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (p for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts)


OURS = list(sources("graphopt", "passes", "models", "scripts", "examples", "benchmarks", "tests"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as an installation lays it out, which is where static tools can follow its imports."""
    folder = tmp_path_factory.mktemp("installed")
    for source, package in PACKAGES.items():
        target = folder.joinpath(*package.split("."))
        shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_imports_go_one_way(installed: Path) -> None:
    """The contracts are in pyproject.toml, [tool.importlinter]."""
    lint = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", lint, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    done = subprocess.run(
        command, cwd=installed, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "Contracts: 0 kept" not in done.stdout


@pytest.mark.parametrize("module", ["graphopt", "graphopt.numerics", "graphopt.errors", "graphopt.log"])
def test_foundation_needs_numpy_at_most(module: str) -> None:
    loaded = imported_by(f"import {module}")
    assert not loaded & {"onnx", "onnx_graphsurgeon", "pydantic", "typer", "rich"}


@pytest.mark.parametrize(
    "code",
    [
        "import graphopt; graphopt.load, graphopt.optimize, graphopt.save",
        "import graphopt.compile",
        "import graphopt.engine",
        "import graphopt.calibrate",
        "import graphopt.compare",
        "import graphopt.models",
        "import graphopt.bench.suites",
        "import typer; from graphopt.cli.main import app; list(typer.main.get_command(app).commands.values())",
    ],
)
def test_heavy_packages_are_imported_where_they_are_used(code: str) -> None:
    heavy = {"tensorrt", "tensorrt_rtx", "tensorrt_bindings", "onnxruntime", "torch", "cuda", "pycuda", "polygraphy"}
    assert not imported_by(code) & heavy


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after ``code``."""
    script = f"{code}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


def test_tensorrt_is_named_in_the_engine_only() -> None:
    """Dynamic imports, which import-linter does not see."""
    offenders = [
        str(path.relative_to(ROOT))
        for path in sources("graphopt", "passes", "models")
        if "engine" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__", "find_spec"))
        if any(isinstance(a, ast.Constant) and str(a.value).startswith("tensorrt") for a in node.args)
    ]
    assert not offenders


def test_cpp_layers() -> None:
    """NvInfer headers only in the adapters, the registry and the self-registering library; tests drive plugins."""
    allowed = ("common/plugin_*.h", "registry*.cpp", "autoreg*.cpp", "tests/*")
    native = [p for p in (ROOT / "trt_plugins").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert native
    using = {str(p.relative_to(ROOT / "trt_plugins")) for p in native if "#include <NvInfer" in p.read_text()}
    assert not [p for p in using if not any(fnmatch(p, pattern) for pattern in allowed)]
    schemes = {p.name for p in (ROOT / "trt_plugins").iterdir() if p.is_dir()} - {"common", "tests"}
    for path in native:
        folder = path.relative_to(ROOT / "trt_plugins").parts[0]
        included = {s for s in schemes if f'#include "{s}/' in path.read_text()}
        if folder == "common":
            assert not included, f"{path} includes a scheme"
        elif folder in schemes:
            assert included <= {folder}, f"{path} includes another scheme"


def statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1 if body else 0


def test_sizes() -> None:
    too_long = []
    for path in OURS:
        text = path.read_text()
        if path.relative_to(ROOT).parts[0] != "tests" and (lines := len(text.splitlines())) > MODULE_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = statements(node)
                if length > FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    for path in (ROOT / "trt_plugins").glob("*/*/op.cpp"):
        if (lines := len(path.read_text().splitlines())) > ADAPTER_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_every_idea_has_a_name() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [str(p.relative_to(ROOT)) for p in OURS if p.stem in vague]


def test_nothing_is_left_unfinished() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error(")
    folders = ("graphopt", "passes", "models", "scripts", "examples", "trt_plugins", "benchmarks")
    kinds = {".py", ".h", ".cpp", ".cu", ".cuh", ".sh"}
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    found = [f"{p.relative_to(ROOT)}: {m}" for p in files for m in marks if m in p.read_text()]
    assert not found


def exported(path: Path) -> set[str] | None:
    """Names in the ``__all__`` of a module; None if it has none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def test_modules_import_only_what_others_export() -> None:
    modules = {}
    for folder, package in PACKAGES.items():
        for path in sources(folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    wrong = set()
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                names = {a.name for a in node.names if f"{node.module}.{a.name}" not in modules}
                if missing := names - (exported(modules[node.module]) or set()):
                    wrong.add(f"__all__ of {node.module} lacks {sorted(missing)}, used in {path.relative_to(ROOT)}")
    assert not wrong, "\n".join(sorted(wrong))


def test_tests_mirror_the_sources() -> None:
    astray = []
    for path in sources("tests"):
        place = path.relative_to(ROOT / "tests")
        if place.parts[0] in FREE or "fixtures" in place.parts or not path.stem.startswith("test_"):
            continue
        name, folder = path.stem.removeprefix("test_"), ROOT / place.parent
        modules = [
            p.stem
            for p in folder.glob("**/*" if place.parts[0] == "trt_plugins" else "*")
            if p.is_file() and p.suffix in {".py", ".h", ".cpp"}
        ]
        if str(place) not in WHOLE_FOLDER and not any(name == m or name.startswith(f"{m}_") for m in modules):
            astray.append(f"tests/{place} mirrors nothing in {place.parent}/")
    assert not astray, "\n".join(astray)
