"""Fetch a Triton Inference Server from the package index, for tests and trials on a machine without containers.

    python scripts/fetch_triton.py          prints the path of its tritonserver

The package nvidia-pytriton holds the server and its Python backend. What is printed is a script that starts it with
the packages of the Python that fetched it, but with numpy 1, which this backend needs. It lies in $GRAPHOPT_ASSETS, by
default ~/.cache/graphopt/assets, and stays there.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from graphopt.models import assets

PACKAGE = "nvidia-pytriton==0.7.0"
NUMPY = "numpy<2"
ROOT = Path(__file__).resolve().parents[1]

_LAUNCHER = """\
#!/bin/sh
export LD_LIBRARY_PATH="{home}/nvidia_pytriton.libs:{libpython}"
export PATH="{home}/python/bin:$PATH"
exec "{home}/pytriton/tritonserver/bin/tritonserver" --backend-directory="{home}/backends" "$@"
"""


def main() -> int:
    """Fetch it if it is not there, and print where it is; return the exit code."""
    home = assets.cache_folder() / f"triton-0.7.0-py{sys.version_info.major}.{sys.version_info.minor}"
    try:
        if not (home / "tritonserver").is_file():
            assets.place(home, _fetch)
        sys.stdout.write(f"{_configure(home)}\n")
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip() or "no reason given").splitlines()[-1]
        sys.stderr.write(f"error: pip could not fetch {e.cmd[-1]}: {reason}\n")
        return 2
    return 0


def _fetch(home: Path) -> None:
    """Put the server and numpy 1 into ``home``."""
    wheels = home / "wheels"
    for requirement in (PACKAGE, NUMPY):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--only-binary=:all:", "--dest", str(wheels), requirement]
        subprocess.run(command, capture_output=True, text=True, check=True)
    for wheel in wheels.glob("*.whl"):
        target = home if wheel.name.startswith("nvidia_pytriton") else home / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    shutil.rmtree(wheels)
    server = home / "pytriton" / "tritonserver"
    backend = home / "backends" / "python"
    backend.mkdir(parents=True)
    stubs = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (*(server / "backends" / "python").iterdir(), *stubs.iterdir()):
        shutil.copyfile(file, backend / file.name)
        (backend / file.name).chmod(0o755)
    (server / "bin" / "tritonserver").chmod(0o755)


def _configure(home: Path) -> Path:
    """Let the server use the packages of this Python and the graphopt of this checkout; return what starts it."""
    environment = home / "python"
    subprocess.run(
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)],
        capture_output=True,
        text=True,
        check=True,
    )
    # An editable installation is found through a hook that only its own environment runs.
    layout = environment / "checkout" / "graphopt"
    layout.mkdir(parents=True)
    for source in (*(ROOT / "graphopt").iterdir(), ROOT / "passes", ROOT / "models"):
        if source.name != "__pycache__":
            (layout / source.name).symlink_to(source)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    paths = (home / "site", layout.parent, sysconfig.get_path("purelib"))
    (site / "graphopt_server.pth").write_text("".join(f"{path}\n" for path in paths))
    launcher = home / "tritonserver"
    libpython = os.fspath(sysconfig.get_config_var("LIBDIR"))
    launcher.write_text(_LAUNCHER.format(home=home, libpython=libpython))
    launcher.chmod(0o755)
    return launcher


if __name__ == "__main__":
    sys.exit(main())
