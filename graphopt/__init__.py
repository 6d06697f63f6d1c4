"""graphopt: an ONNX graph-rewriting compiler with TensorRT plugins."""

__all__ = ["__version__"]

__version__ = "0.1.0"
