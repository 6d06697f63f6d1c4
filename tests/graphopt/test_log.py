"""One logger tree, silent by default."""

import logging
import subprocess
import sys

from graphopt import log


def test_loggers_hang_below_one_root() -> None:
    logger = log.get("graphopt.ir.io")
    assert logger.name == "graphopt.ir.io"
    root = logging.getLogger("graphopt")
    assert any(isinstance(h, logging.NullHandler) for h in root.handlers)
    before = list(root.handlers)
    log.get("graphopt.other")
    assert root.handlers == before


def test_silent_without_configuration() -> None:
    code = "from graphopt import log; log.get('graphopt.x').error('boo')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
