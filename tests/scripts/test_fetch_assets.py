import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.models import assets

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_assets.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    done = run("smolm2", GRAPHOPT_ASSETS=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: no asset 'smolm2'; did you mean 'smollm2'?\n"
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_says_so(tmp_path: Path) -> None:
    offline = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = run("wikipedia", GRAPHOPT_ASSETS=str(tmp_path / "cache"), **offline)
    assert done.returncode == 2
    assert "error: pip could not download gensim==4.4.0: " in done.stderr


@pytest.mark.weights
def test_fetches_and_says_where(tmp_path: Path) -> None:
    done = run("wikipedia", GRAPHOPT_ASSETS=str(tmp_path))
    asset = assets.ASSETS["wikipedia"]
    expected = tmp_path / Path(asset.member).name
    assert done.stdout == f"wikipedia: {expected}\n", done.stderr
    assert expected.stat().st_size == asset.nbytes
    again = run("wikipedia", GRAPHOPT_ASSETS=str(tmp_path), PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")
    assert again.stdout == done.stdout
