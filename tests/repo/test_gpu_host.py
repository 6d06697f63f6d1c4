"""What benchmarks/gpu_trip.sh starts loads where only the checkout and a few packages are (benchmarks/README.md)."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRIP = (ROOT / "benchmarks/gpu_trip.sh").read_text()
SCRIPTS = sorted(set(re.findall(r"python3 (benchmarks/\S+\.py)", TRIP)))
#: What the checkout's code finds on a GPU host.
PACKAGES = {"torch", "numpy", "ml_dtypes", "typer", "rich"}

#: A GPU host: our code imports no other package, graphopt is that of the checkout, and torch is a stand-in without a
#: GPU. What the packages themselves import is theirs to say.
HOST = f"""
import builtins, sys
from pathlib import Path
from unittest.mock import MagicMock

sys.dont_write_bytecode = True
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
sys.path[:0] = ROOT, _ = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
OURS = {{p.stem for p in (Path(ROOT) / "benchmarks").rglob("*.py")}} | {{"graphopt"}}
ALLOWED = {PACKAGES!r} | OURS | set(sys.stdlib_module_names)
import_any = builtins.__import__

def import_allowed(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__file__", ROOT)
    if importer.startswith(ROOT) and "site-packages" not in importer and name.partition(".")[0] not in ALLOWED:
        raise ModuleNotFoundError(f"a GPU host has no {{name}}", name=name)
    return torch if name.partition(".")[0] == "torch" else import_any(name, globals, locals, fromlist, level)

torch = MagicMock(__version__="2.11.0", __spec__=None)
torch.cuda.is_available.return_value = False
sys.modules["torch"] = torch
builtins.__import__ = import_allowed
"""


def on_host(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` as on a GPU host."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRAPHOPT", "PYTHON"))}
    command = [sys.executable, "-c", HOST + code]
    return subprocess.run(command, cwd="/", env=kept, capture_output=True, text=True, check=False)


def test_what_a_host_has_is_documented() -> None:
    assert len(SCRIPTS) >= 9
    for text in (TRIP, (ROOT / "benchmarks/README.md").read_text()):
        (listed,) = re.findall(r"`?python3`? with ([\w, ]+)[.;]", text)
        assert set(listed.replace(" and ", ", ").split(", ")) == PACKAGES


@pytest.mark.parametrize("package", ["onnx", "onnx_graphsurgeon", "pydantic", "graphopt.passes", "graphopt.core"])
def test_a_host_lacks_the_compilers_packages(package: str) -> None:
    done = on_host(f"import {package}")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_loads(script: str) -> None:
    path = ROOT / script
    done = on_host(f"sys.path.insert(0, {str(path.parent)!r}); import runpy\nrunpy.run_path({str(path)!r})")
    assert done.returncode == 0, done.stderr[-2000:]


def test_suites_get_as_far_as_the_gpu() -> None:
    assert "python3 -m graphopt bench kernels --suite" in TRIP
    done = on_host(
        "sys.argv = ['graphopt', 'bench', 'kernels', '--suite', 'mixq']; import runpy\n"
        "runpy.run_module('graphopt', run_name='__main__')"
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "no CUDA GPU" in done.stdout + done.stderr


def test_imports_inside_functions() -> None:
    """Those that loading does not reach, in the scripts and in graphopt.bench."""
    known = PACKAGES | set(sys.stdlib_module_names) | {p.stem for p in (ROOT / "benchmarks").rglob("*.py")}
    wrong = []
    for path in (*(ROOT / script for script in SCRIPTS), *(ROOT / "graphopt/bench").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.Lambda)):
                for node in ast.walk(function):
                    for name in imported(node):
                        ours = name.startswith("graphopt.") and on_host(f"import {name}").returncode == 0
                        if name.partition(".")[0] not in known and not ours:
                            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong


def imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
