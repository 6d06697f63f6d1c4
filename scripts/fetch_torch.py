"""Fetch PyTorch from the package index, for tests of what runs in it, on a machine without a GPU.

    python scripts/fetch_torch.py          prints the path of a python that has torch

That python is this one, with the packages of its environment and torch beside them. CUDA's libraries are left out: a
torch that cannot be imported without them is reported. It lies in $GRAPHOPT_ASSETS, by default
~/.cache/graphopt/assets, and stays there. A torch that is installed already is used as it is.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from graphopt.models import assets

VERSION = "2.13.0"
#: What torch itself imports.
NEEDED = ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "typing-extensions")

_LAUNCHER = """\
#!/bin/sh
export PYTHONPATH="{home}/site${{PYTHONPATH:+:$PYTHONPATH}}"
exec "{python}" "$@"
"""


def main() -> int:
    """Fetch it if it is not there, and print where it is; return the exit code."""
    if importlib.util.find_spec("torch") is not None:
        sys.stdout.write(f"{sys.executable}\n")
        return 0
    home = assets.cache_folder() / f"torch-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    try:
        if not (home / "site" / "torch").is_dir():
            assets.place(home, _fetch)
        launcher = home / "python"
        launcher.write_text(_LAUNCHER.format(home=home, python=sys.executable))
        launcher.chmod(0o755)
        subprocess.run([launcher, "-c", "import torch"], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip() or "no reason given").splitlines()[-1]
        sys.stderr.write(f"error: no torch {VERSION} without CUDA's libraries from this package index: {reason}\n")
        return 2
    sys.stdout.write(f"{launcher}\n")
    return 0


def _fetch(home: Path) -> None:
    """Put torch into ``home``/site."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary=:all:", "--target", str(home / "site"), f"torch=={VERSION}", *NEEDED]
    subprocess.run(command, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
