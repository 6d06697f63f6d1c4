"""graphopt: an ONNX graph-rewriting compiler with TensorRT plugins.

model = graphopt.load("model.onnx")
report = graphopt.optimize(model, "mixq-w8a8", statistics="stats.npz")
graphopt.save(model, "model.opt.onnx")
"""

__all__ = ["__version__", "load", "optimize", "save"]

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import load, optimize, save

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The compiler is imported on first use, so that `import graphopt.numerics` needs numpy alone.
    if name in __all__:
        from graphopt import api

        return getattr(api, name)
    raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
