"""Field by field: does a config.pbtxt say what the plan says?"""

__all__ = ["check_engine", "check_repository"]

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from graphopt.deploy.digests import check_files
from graphopt.deploy.triton.config import kind_name, parse, triton_type
from graphopt.engine import manifest as manifests
from graphopt.engine.manifest import Manifest, Tensor
from graphopt.errors import DeployError


def check_repository(folder: Path) -> dict[str, Any]:
    """Compare what `deploy` wrote with its manifest, and an engine model's configuration with the plan.

    Returns:
        The manifest.

    Raises:
        DeployError: a file is missing, changed or too much, or a configuration does not fit; or there is no manifest.
    """
    about = check_files(folder, "models", "checkpoint")
    for plan in sorted((folder / "models").glob("*/1/model*.plan")):
        config = plan.parents[1] / "config.pbtxt"
        if 'platform: "tensorrt_plan"' in config.read_text(encoding="utf-8"):
            check_engine(config, manifests.read(plan))
    return about


def check_engine(path: Path, manifest: Manifest) -> None:
    """Compare the configuration of an engine model with the manifest of its plan.

    Args:
        path: config.pbtxt in the model's folder, with the version folder 1 beside it.
        manifest: of the plan.

    Raises:
        DeployError: the first field that Triton or the engine would not take.
    """
    config = parse(path.read_text(encoding="utf-8"), str(path))
    if config.name != path.parent.name:
        raise DeployError(f"{path}: name is '{config.name}', but the folder is '{path.parent.name}'")
    if config.platform != "tensorrt_plan":
        raise DeployError(f"{path}: platform is '{config.platform}', not 'tensorrt_plan'")
    for file in (config.default_model_filename, *config.cc_model_filenames.values()):
        if PurePosixPath(file).name != file or not (path.parent / "1" / file).is_file():
            raise DeployError(f"{path}: the file '{file}' is not in {path.parent / '1'}")
    states = list(config.sequence_batching.state)
    _check_side(path, "input", config, manifest, manifest.inputs, {s.input_name: s for s in states})
    _check_side(path, "output", config, manifest, manifest.outputs, {s.output_name: s for s in states})
    for state in states:
        _check_state(path, state)


def _check_side(
    path: Path, side: str, config: Any, manifest: Manifest, tensors: tuple[Tensor, ...], states: Mapping[str, Any]
) -> None:
    declared = {p.name: p for p in getattr(config, side)} | dict(states)
    names = {t.name for t in tensors}
    for name in declared:
        if name not in names:
            raise DeployError(f"{path}: {side} '{name}' is none of the engine")
    for tensor in tensors:
        if tensor.name not in declared:
            if side == "input":
                raise DeployError(f"{path}: input '{tensor.name}' of the engine is missing")
            continue  # nobody has to ask for an output
        port = declared[tensor.name]
        kind = kind_name(config, port.data_type)
        if kind != triton_type(tensor):
            raise DeployError(f"{path}: '{tensor.name}' is {kind}, but {triton_type(tensor)} in the engine")
        _check_dims(path, tensor, _engine_dims(port, config.max_batch_size), manifest)


def _engine_dims(port: Any, max_batch: int) -> list[int]:
    """The shape that the engine gets."""
    reshaped = hasattr(port, "reshape") and port.HasField("reshape")
    dims = list(port.reshape.shape if reshaped else port.dims)
    return [-max_batch, *dims] if max_batch else dims


def _check_dims(path: Path, tensor: Tensor, dims: list[int], manifest: Manifest) -> None:
    """A first size below -1 is a batch of up to that many."""
    if len(dims) != len(tensor.shape):
        raise DeployError(f"{path}: '{tensor.name}' has {len(dims)} axes, but {len(tensor.shape)} in the engine")
    ranges = [p.ranges[tensor.name] for p in manifest.profiles if tensor.name in p.ranges]
    for axis, (size, engine) in enumerate(zip(dims, tensor.shape, strict=True)):
        if engine >= 0:
            fits = size == engine
        else:
            fits = size == -1 or not ranges or any(r.min[axis] <= abs(size) <= r.max[axis] for r in ranges)
        if not fits:
            takes = engine if engine >= 0 else ", ".join(f"{r.min[axis]} to {r.max[axis]}" for r in ranges)
            raise DeployError(f"{path}: axis {axis} of '{tensor.name}' is {abs(size)}, but the engine takes {takes}")


def _check_state(path: Path, state: Any) -> None:
    (initial,) = state.initial_state
    if list(initial.dims) != list(state.dims) or initial.data_type != state.data_type:
        raise DeployError(f"{path}: the state '{state.input_name}' begins with another shape or type than it has")
    if min(state.dims) < 1:
        raise DeployError(f"{path}: the state '{state.input_name}' has no fixed size")
