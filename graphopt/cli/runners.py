"""Flags that say what runs a model, shared by the verbs that run models."""

__all__ = ["PluginsFlag", "RunnerFlag"]

from pathlib import Path
from typing import Annotated

import typer

RunnerFlag = Annotated[
    str | None,
    typer.Option(
        help="ort (ONNX Runtime), reference (onnx.reference) or trt (TensorRT, for plans).",
        show_default="trt for a .plan, else ort",
    ),
]
PluginsFlag = Annotated[Path | None, typer.Option(help="The plugin library for plans.", show_default="looked for")]
