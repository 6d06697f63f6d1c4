"""ONNX file -> TensorRT network, and the check that our ops became plugins rather than their bodies."""

__all__ = ["parse", "require_plugins"]

import re
from pathlib import Path
from typing import Any

import onnx

from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import brief
from graphopt.engine.plugins import PluginLibrary
from graphopt.engine.source import CustomOps
from graphopt.errors import EngineError

#: What an importer's assertion says when it has nothing to say.
_EMPTY_REASONS = ("", "false")
_LISTED = 3


def parse(flavour: Flavour, builder: Any, path: Path) -> tuple[Any, Any]:
    """Return the network of the ONNX file ``path``, and the parser, which owns the network's weights.

    Raises:
        EngineError: the parser refused; the message names the node.
    """
    network = flavour.network(builder)
    parser = flavour.trt.OnnxParser(network, flavour.logger)
    with flavour.messages.record() as record:
        if flavour.modern:
            ok = parser.parse_from_file(str(path))
        else:
            ok = parser.parse(_without_functions(path), path=str(path))
    if not ok:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        if not errors:
            raise EngineError(f"{flavour} cannot read {path}: {record.reason()}")
        raise EngineError(_sentence(flavour, path, errors[-1]))
    if not network.num_layers:
        raise EngineError(f"{path}: {flavour} found no layers in this model")
    return network, parser


def _without_functions(path: Path) -> bytes:
    """The model without its local functions, which the parser of TensorRT 8 does not know."""
    proto = onnx.load(path, load_external_data=False)
    del proto.functions[:]
    return bytes(proto.SerializeToString())


def _sentence(flavour: Flavour, path: Path, error: Any) -> str:
    """One sentence that names the node; TensorRT 8 knows its number only."""

    def ask(attribute: str) -> Any:
        return getattr(error, attribute, lambda: "")()

    op, name, index = ask("node_operator"), ask("node_name"), error.node()
    description = brief(re.sub(r"^Invalid Node - .*\n", "", error.desc()))
    if not op and index < 0:
        return f"{flavour} cannot read {path}: {description}"
    where = f"node '{name}' ({op})" if op else f"node number {index}"
    stack = ask("local_function_stack") if getattr(error, "local_function_stack_size", lambda: 0)() else ()
    if stack:
        where += f", inside the function body of {stack[0]}"
    if "Plugin not found" in description:
        return (
            f"{path}: {flavour} knows no op or plugin '{op}' ({where}); rewrite it into standard ops, "
            "or name the library that has its plugin with --plugins"
        )
    if description in _EMPTY_REASONS:
        return f"{path}: {flavour} does not support op '{op}' ({where}); rewrite it into other standard ops"
    return f"{path}: {flavour} refused {where}: {description}"


def require_plugins(
    flavour: Flavour, network: Any, wanted: CustomOps, library: PluginLibrary | None, native_fallback: bool
) -> int:
    """Return the number of plugin layers; the parser silently imports a node's body where its plugin is missing.

    Raises:
        EngineError: fewer than ``wanted`` and not ``native_fallback``; names the missing ops.
    """
    layers = [network.get_layer(i).type for i in range(network.num_layers)].count(flavour.plugin_layer)
    if layers >= wanted.total or native_fallback:
        return layers
    available = set(library.creators) if library else set()
    missing = sorted(op for op in wanted.counts if op not in available) or sorted(wanted.counts)
    listed = ", ".join(f"{op} ({wanted.counts[op]} nodes, such as '{wanted.example[op]}')" for op in missing[:_LISTED])
    if len(missing) > _LISTED:
        listed += f" and {len(missing) - _LISTED} more ops"
    source = f"{library.path} does not provide" if library else "no plugin library was loaded for"
    raise EngineError(
        f"only {layers} of {wanted.total} custom nodes became plugin layers: {source} {listed}; "
        "build the plugin library again, or pass --native-fallback to run their bodies in standard ops"
    )
