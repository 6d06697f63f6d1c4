"""User errors and internal errors, deliberately unrelated.

A `GraphOptError` is the user's: a wrong model, recipe, flag, file or GPU. Its message is one sentence that names
the culprit and says what to do; the command line prints it without a traceback and exits with code 2.
An `InternalError` is a bug of ours and always comes with its traceback.
"""

__all__ = [
    "BenchError",
    "CalibrationError",
    "ComparisonFailed",
    "DeployError",
    "EngineError",
    "GraphOptError",
    "InternalError",
    "ModelError",
    "OutputError",
    "PluginError",
    "RecipeError",
    "WorkerError",
    "nearest",
]

import difflib
from collections.abc import Iterable


class GraphOptError(Exception):
    """Something the user gave cannot be used; exit code 2."""

    exit_code = 2


class ModelError(GraphOptError):
    """The ONNX file, or the external data it names, cannot be used."""


class RecipeError(GraphOptError):
    """The recipe (or a flag standing for a recipe setting) is wrong."""


class CalibrationError(GraphOptError):
    """Calibration data or statistics do not fit the model."""


class OutputError(GraphOptError):
    """An output cannot be written; nothing of it was left behind."""


class PluginError(GraphOptError):
    """The plugin library is missing, damaged or built for something else."""


class EngineError(GraphOptError):
    """TensorRT is missing, or refused to parse, build or load."""


class DeployError(GraphOptError):
    """What a server starts from cannot be written, or a request to it cannot be answered."""


class BenchError(GraphOptError):
    """What is to be timed cannot run on this machine."""


class WorkerError(GraphOptError):
    """A process that worked for us was killed."""


class ComparisonFailed(Exception):  # noqa: N818 (an outcome, not an error)
    """Two models differ by more than the tolerance; exit code 1."""

    exit_code = 1


class InternalError(Exception):
    """A bug in graphopt: an invariant of ours does not hold."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: ``; did you mean 'x'?`` or ``; known: a, b``.

    >>> nearest("treshold", ["threshold", "capacity"])
    "; did you mean 'threshold'?"
    >>> nearest("zzz", ["b", "a"])
    '; known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
