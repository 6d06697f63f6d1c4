"""Run mypy over the package as an installation lays it out.

`passes/` and `models/` are installed as graphopt.passes and graphopt.models; mypy follows folders, not the mapping of
an editable installation. So it gets a folder of links, build/types/graphopt, that has the installed shape.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Link the sources together and check them; extra arguments go to mypy."""
    layout = ROOT / "build" / "types" / "graphopt"
    shutil.rmtree(layout, ignore_errors=True)
    layout.mkdir(parents=True)
    for source in (*(ROOT / "graphopt").iterdir(), ROOT / "passes", ROOT / "models"):
        if source.name != "__pycache__":
            (layout / source.name).symlink_to(source)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "graphopt"]
    return subprocess.run([*command, *sys.argv[1:]], cwd=layout.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
