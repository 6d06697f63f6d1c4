import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.text_model import write_text_model

SCRIPT = Path(__file__).parents[4] / "scripts" / "fetch_triton.py"


@pytest.fixture(scope="session")
def tritonserver() -> Path:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tritonserver here: {done.stderr.strip()}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder over bytes, with its tokenizer beside it."""
    return write_text_model(tmp_path_factory.mktemp("text"))
