"""The inputs of a plan, as runners declare them."""

__all__ = ["plan_inputs"]

from pathlib import Path

from graphopt.calibrate.feeds import Input, role_of
from graphopt.engine.manifest import Manifest
from graphopt.engine.ports import numpy_dtype


def plan_inputs(manifest: Manifest, path: Path) -> tuple[Input, ...]:
    """Return what ``manifest`` says of the inputs of the plan ``path``: None for dynamic axes, roles by name.

    Raises:
        EngineError: numpy has no type for one of them.
    """
    return tuple(
        Input(
            tensor.name,
            numpy_dtype(tensor.dtype, tensor.name, path),
            tuple(d if d >= 0 else None for d in tensor.shape),
            role=role_of(tensor.name, manifest.cache),
        )
        for tensor in manifest.inputs
    )
