"""What ``--json`` prints, verb by verb: pydantic models. docs/json.md is made from them, and tests hold verbs to them.

Fields may be added in any version; one that is here keeps its name, its type and its meaning. Unless its description
says otherwise, times are in seconds and sizes in bytes, and null stands for what is not known or was not asked for.
"""

__all__ = ["SHAPES", "markdown"]

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from graphopt.cli.shapes import engines, files
from graphopt.cli.shapes.base import Shape

#: By command; several where its arguments decide.
SHAPES: dict[str, tuple[type[Shape], ...]] = {
    "optimize": (files.Optimize,),
    "calibrate": (files.Calibrate,),
    "inspect": (files.Inspect, files.InspectText, engines.InspectPlan),
    "explain": (files.Explain,),
    "compare": (files.Compare,),
    "build": (engines.Build,),
    "run": (engines.Run,),
    "generate": (engines.Generate,),
    "deploy triton": (engines.DeployTriton,),
    "deploy tensorrt-llm": (engines.DeployTensorrtLlm,),
    "deploy check": (engines.DeployCheck,),
    "doctor": (engines.Doctor,),
    "bench engine": (engines.BenchEngine,),
    "bench kernels": (engines.BenchKernels,),
    "eval ppl": (files.EvalPpl,),
    "estimate": (files.Estimate,),
    **dict.fromkeys(
        (f"model {source}" for source in ("smollm2", "gguf", "safetensors", "llama", "bert")), (files.Model,)
    ),
}

_HEAD = """# What `--json` prints

Every verb takes `--json` and prints one JSON object on standard output; everything else goes to standard error. A verb
that fails prints no JSON, says why on standard error and ends with an exit code that is not 0; `compare`, which ends
with 1 where models differ, prints it all the same. Fields may be added in any version; one that is here keeps its name,
its type and its meaning. Unless said otherwise times are in seconds, sizes in bytes, and null stands for what is not
known or was not asked for.

This page is made by `python scripts/json_docs.py` from [graphopt/cli/shapes](../graphopt/cli/shapes): pydantic models
that the tests hold every verb to. `SHAPES["optimize"][0].model_json_schema()` is a JSON schema.
"""


def markdown() -> str:
    """Return docs/json.md."""
    roots = list(dict.fromkeys(shape for shapes in SHAPES.values() for shape in shapes))
    parts = [_HEAD]
    done: set[type[Shape]] = set()
    for root in roots:
        parts.append(f"## {_line(root)}\n\n{_table(root)}")
        for inner in _inside(root):
            if inner not in done:
                done.add(inner)
                parts.append(f"### {inner.__name__}\n\n{_line(inner)}\n\n{_table(inner)}")
    return "\n".join(parts)


def _line(shape: type[Shape]) -> str:
    text = " ".join((shape.__doc__ or "").split())
    return f"`{text}`" if text.startswith("graphopt ") and ":" not in text else text


def _table(shape: type[Shape]) -> str:
    rows = [f"| {name} | {_spelled(f.annotation)} | {_cell(f.description)} |" for name, f in shape.model_fields.items()]
    return "\n".join(["| field | type | what it is |", "| --- | --- | --- |", *rows, ""])


def _cell(description: str | None) -> str:
    """A bar in a table of Markdown begins the next cell, even within a formula."""
    return (description or "").replace("|", r"\|")


def _inside(shape: type[Shape]) -> Iterator[type[Shape]]:
    """The shapes that the fields of a shape name, and those that theirs do."""
    for field in shape.model_fields.values():
        for kind in _named(field.annotation):
            yield kind
            yield from _inside(kind)


def _named(kind: Any) -> Iterator[type[Shape]]:
    if isinstance(kind, type) and not typing.get_args(kind) and issubclass(kind, Shape):
        yield kind
    for argument in typing.get_args(kind):
        yield from _named(argument)


def _spelled(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(map(_spelled, arguments))
    if typing.get_origin(kind) is list:
        return f"list of {_spelled(arguments[0])}"
    if typing.get_origin(kind) is dict:
        return f"object of {_spelled(arguments[1])}"
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "anything"}
    return plain[kind] if kind in plain else f"[{kind.__name__}](#{kind.__name__.lower()})"
