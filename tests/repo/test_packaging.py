"""What is installed is what is in the tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def package_of(path: Path) -> str:
    """The dotted name of the package in the folder ``path``, relative to the root."""
    package = next(p for p, folder in FOLDERS.items() if path.parts[0] == folder)
    return ".".join([package, *path.parts[1:]])


def tree() -> dict[str, Path]:
    """Packages by name, as the folders with an __init__.py make them."""
    inits = [p for folder in FOLDERS.values() for p in (ROOT / folder).rglob("__init__.py")]
    return {package_of(p.parent.relative_to(ROOT)): p.parent for p in inits}


def test_list_of_packages_is_the_tree() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == set(tree())


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {p.parent for f in FOLDERS.values() for p in (ROOT / f).rglob("*.py")}
    assert folders == set(tree().values())


def test_mapped_folders_do_not_shadow_each_other() -> None:
    """graphopt/passes would hide passes/, which is installed under that name."""
    assert not (ROOT / "graphopt" / "passes").exists()
    assert not (ROOT / "graphopt" / "models").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", folder, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {
        f"{package.replace('.', '/')}/{p.name}" for package, folder in tree().items() for p in folder.glob("*.py")
    }
    expected.add("graphopt/py.typed")
    expected |= {f"graphopt/models/recipes/{p.name}" for p in (ROOT / "models" / "recipes").glob("*.yaml")}
    expected |= {f"graphopt/estimate/{p.name}" for p in (ROOT / "graphopt" / "estimate").glob("*.yaml")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "graphopt" / "deploy").rglob("*.in")}
    assert names == expected
    assert "py3-none-any" in wheel.name, "the Python package stays pure; the plugin library is built by CMake"


def test_wheel_states_licence_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    meta = {n.rpartition(".dist-info/")[2]: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    assert "License-Expression: Apache-2.0" in meta["METADATA"]
    assert any(n.endswith("LICENSE") and "Apache License" in text for n, text in meta.items())
    assert "graphopt = graphopt.cli.main:main" in meta["entry_points.txt"]


def test_installed_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import graphopt.passes, graphopt.models, graphopt.cli.main; print(graphopt.passes.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(tmp_path / "graphopt" / "passes" / "__init__.py"), done.stderr


def test_version_is_stated_once() -> None:
    import graphopt

    assert graphopt.__version__ == PROJECT["project"]["version"]
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()
