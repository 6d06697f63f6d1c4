"""Running a model, whatever runs it: ONNX Runtime, onnx.reference or TensorRT behind one interface."""

__all__ = ["KINDS", "Decoder", "Loop", "Runner", "open_runner", "running"]

from graphopt.runners.decoder import Decoder
from graphopt.runners.opening import KINDS, open_runner, running
from graphopt.runners.protocol import Loop, Runner
