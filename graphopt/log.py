"""The one logger tree. Modules call ``log.get(__name__)``; only the command line decides what is shown."""

__all__ = ["get"]

import logging


def get(name: str) -> logging.Logger:
    """Return the logger ``name`` below the root ``graphopt`` (silent unless an application configures it)."""
    root = logging.getLogger("graphopt")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    return logging.getLogger(name)
