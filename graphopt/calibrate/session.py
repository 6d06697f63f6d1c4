"""The one place that opens ONNX Runtime sessions: options, data types and errors."""

__all__ = ["Session"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphOptError, ModelError

#: ONNX Runtime's level "fatal": what it would print as an error is raised here as a ModelError.
_LOG_FATAL = 4
#: How ONNX Runtime says that it has no kernel for the type of a node.
_MISSING = "NOT_IMPLEMENTED"


class Session:
    """An ONNX file, opened for execution on the CPU; the functions in the file define its custom ops.

    Args:
        path: the .onnx file, with its external data beside it.
        optimize: whether ONNX Runtime may rewrite the graph. Off for comparing graphs node by node.
        threads: threads within an operator (default: the cores this process may use).

    Attributes:
        path: as given.
        outputs: names of the model's outputs, in order.

    Raises:
        ModelError: ONNX Runtime refuses the file.
        GraphOptError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, *, optimize: bool = True, threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as e:
            raise GraphOptError(
                "running models needs ONNX Runtime; install it with: pip install 'graphopt[runtime]'"
            ) from e
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        # Its search for buffers to reuse takes a time that grows with the square of the values: minutes for the inlined
        # bodies of a decoder. The arena reuses memory anyway: peak and time of a run are the same without it.
        options.enable_mem_reuse = False
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if not path.is_file():
            raise ModelError(f"{path} does not exist or is not a file; give the path of an .onnx file")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:
            reason = _sentence(e)
            ways = "take float32, a plan, or --runner reference"
            hint = f"; it has few kernels for bfloat16 on the CPU: {ways}" if _MISSING in reason else ""
            raise ModelError(f"ONNX Runtime cannot open {path}: {reason}{hint}") from e
        self.path = path
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feed: one array for each of the model's inputs.
            outputs: names of the outputs to return (default: all).

        Raises:
            ModelError: the feed does not fit, or a node failed.
        """
        names = list(outputs) if outputs is not None else self.outputs
        try:
            values = self._session.run(names, dict(feed))
        except Exception as e:
            raise ModelError(f"ONNX Runtime cannot run {self.path}: {_sentence(e)}") from e
        return dict(zip(names, values, strict=True))


def _sentence(error: Exception) -> str:
    """The first line of an ONNX Runtime message, without its error number prefix."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.rpartition("[ONNXRuntimeError] : ")[2]
