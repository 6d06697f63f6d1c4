"""Plans that Triton's TensorRT backend would run, as far as their manifests tell."""

import json
from collections.abc import Sequence
from pathlib import Path

from graphopt.engine import manifest as manifests
from graphopt.engine.digest import sha256
from graphopt.engine.profiles import Shape
from tests.support.host_engine import write_plan


def write_server_plan(
    path: Path,
    model: Path,
    profiles: Sequence[dict[str, tuple[Shape, Shape, Shape]]] = (),
    *,
    targets: Sequence[str] = ("9.0",),
    flavour: str = "tensorrt",
    library: Path | None = None,
) -> Path:
    """Write the "plan" of ``model``, by default without plugins, and a manifest that has its digest."""
    write_plan(path, model, profiles, plugins=False)
    file = manifests.path_for(path)
    data = json.loads(file.read_text())
    data |= {"plan_sha256": sha256(path), "targets": list(targets), "flavour": flavour, "tensorrt": "10.14.1"}
    if library is not None:
        data["plugins"] = {"path": str(library), "sha256": sha256(library), "version": None, "build_info": None}
    file.write_text(json.dumps(data))
    return path
